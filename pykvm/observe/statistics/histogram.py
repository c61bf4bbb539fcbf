"""``Histogram``: how often a number was how large, in a few hundred buckets whatever the numbers are.

Numbers below 16 have a bucket each; above that there are eight to each power of two, so that a bucket is never wider
than an eighth of what is in it:

    0 1 2 ... 15 | 16-17 18-19 ... 30-31 | 32-35 36-39 ... 60-63 | 64-71 ...
    bucket 0..15 | 16    17        23    | 24    25        31    | 32

Leaves out negative numbers.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Histogram", "bucket_of", "limits_of"]

_BITS = 3  # below the highest: eight buckets to each power of two


class Histogram:
    """Counts numbers from 0 up; exact about how many they were and their sum, and about percentiles within 1/16."""

    __slots__ = ("_counts", "count", "total")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.total = 0

    def add(self, value: int) -> None:
        """Count ``value``."""
        shift = value.bit_length() - _BITS - 1
        bucket = value if shift <= 0 else (shift << _BITS) + (value >> shift)
        counts = self._counts
        counts[bucket] = counts.get(bucket, 0) + 1
        self.count += 1
        self.total += value

    def percentile(self, percent: float) -> int | None:
        """Return what ``percent`` of the numbers are not above: the middle of its bucket; None without any numbers."""
        wanted = self.count * percent / 100
        seen = 0
        for bucket, count in sorted(self._counts.items()):
            seen += count
            if seen >= wanted:
                low, high = limits_of(bucket)
                return (low + high) // 2
        return None

    @classmethod
    def sum(cls, parts: Iterable[Histogram]) -> Histogram:
        """Return a histogram of all that is in ``parts``, which may be counting meanwhile."""
        whole = cls()
        for part in parts:
            for bucket, count in list(part._counts.items()):
                whole._counts[bucket] = whole._counts.get(bucket, 0) + count
                whole.count += count
            whole.total += part.total
        return whole


def bucket_of(value: int) -> int:
    """Return the bucket that ``value`` is counted in."""
    shift = value.bit_length() - _BITS - 1
    return value if shift <= 0 else (shift << _BITS) + (value >> shift)


def limits_of(bucket: int) -> tuple[int, int]:
    """Return the lowest and the highest number of ``bucket``."""
    shift = max(0, (bucket >> _BITS) - 1)
    low = bucket - (shift << _BITS) << shift
    return low, low + (1 << shift) - 1
