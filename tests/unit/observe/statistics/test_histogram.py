"""Buckets that grow with what they count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.observe.statistics.histogram import Histogram, bucket_of, limits_of

NUMBERS = st.integers(0, (1 << 63) - 1) | st.integers(0, 300)


@given(NUMBERS)
def test_a_number_is_within_the_limits_of_its_bucket(number: int) -> None:
    low, high = limits_of(bucket_of(number))
    assert low <= number <= high
    assert high - low <= number / 8


@given(NUMBERS)
def test_buckets_adjoin(number: int) -> None:
    bucket = bucket_of(number)
    assert limits_of(bucket + 1)[0] == limits_of(bucket)[1] + 1
    assert bucket < 512


@given(st.lists(NUMBERS, min_size=1), st.sampled_from([0, 1, 50, 99, 100]))
def test_a_percentile_is_within_a_sixteenth_of_the_truth(numbers: list[int], percent: int) -> None:
    histogram = Histogram()
    for number in numbers:
        histogram.add(number)
    truth = sorted(numbers)[max(0, -(-len(numbers) * percent // 100) - 1)]
    told = histogram.percentile(percent)
    assert told is not None
    assert abs(told - truth) <= truth / 16


@given(st.lists(st.lists(NUMBERS)))
def test_a_sum_counts_what_its_parts_counted(parts: list[list[int]]) -> None:
    histograms = [Histogram() for _ in parts]
    whole = Histogram()
    for histogram, numbers in zip(histograms, parts, strict=True):
        for number in numbers:
            histogram.add(number)
            whole.add(number)
    total = Histogram.sum(histograms)
    assert (total.count, total.total) == (whole.count, whole.total) == (sum(map(len, parts)), sum(map(sum, parts)))
    assert [total.percentile(percent) for percent in (1, 50, 99)] == [whole.percentile(p) for p in (1, 50, 99)]


@pytest.mark.parametrize("percent", [0, 50, 100])
def test_nothing_has_no_percentiles(percent: int) -> None:
    assert Histogram().percentile(percent) is None
