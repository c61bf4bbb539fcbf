"""Strategies of what a driver, or a hostile guest, does to a device: reads and writes of every width, as exits.

The values written are those of ``pykvm.testing.strategies.values``: likely ones that switch something. See:
``pykvm.devices.device`` for which widths a device sees. Leaves out string instructions: every access is one item.
"""

from __future__ import annotations

from collections.abc import Collection

from hypothesis import strategies as st

from pykvm.errors import ConfigurationError
from pykvm.kvm import IoIn, IoOut, MmioRead, MmioWrite
from pykvm.testing.strategies.values import little_endian
from pykvm.units import Gpa

__all__ = ["mmio_accesses", "port_accesses"]

PORTS = 1 << 16


def port_accesses(
    ports: Collection[int], *, sizes: Collection[int] = (1, 2, 4), max_size: int = 50
) -> st.SearchStrategy[list[IoIn | IoOut]]:
    """Return sequences of up to ``max_size`` accesses to ``ports``, such as ``range(0x3f8, 0x400)``.

    An access of any of ``sizes`` starts at any port, and may run over the last one, as a guest's may. Sequences shrink
    to fewer accesses, bytes before words, reads before writes, low ports and small values.

    Raises: ConfigurationError for no ports, or what no port can be.
    """
    if not ports or not all(0 <= port < PORTS for port in ports):
        raise ConfigurationError("there are no such ports: name at least one, of 16 bits")
    _check_sizes(sizes, (1, 2, 4))
    port = st.sampled_from(list(ports))
    reads = st.builds(IoIn, port, st.sampled_from(list(sizes)))
    writes = [st.builds(_out, port, little_endian(size)) for size in sizes]
    return st.lists(st.one_of(reads, *writes), max_size=max_size)


def mmio_accesses(
    base: int, length: int, *, sizes: Collection[int] = (1, 2, 4, 8), max_size: int = 50
) -> st.SearchStrategy[list[MmioRead | MmioWrite]]:
    """Return sequences of up to ``max_size`` accesses inside the ``length`` addresses from ``base`` on.

    They shrink as ``port_accesses`` do. A ``base`` of 0 makes their addresses a device's offsets; an access that
    straddles the end of a range reaches a device in part, so that there ``sizes`` may be any of 1 to 8.

    Raises: ConfigurationError for an empty range, or sizes that do not fit into it.
    """
    _check_sizes(sizes, range(1, 9))
    fitting = [size for size in sizes if size <= length]
    if base < 0 or not fitting:
        raise ConfigurationError(f"there is no access of {', '.join(map(str, sizes))} bytes in {length} from {base:#x}")
    reads = [st.builds(MmioRead, _starts(base, length, size), st.just(size)) for size in fitting]
    writes = [st.builds(MmioWrite, _starts(base, length, size), little_endian(size)) for size in fitting]
    return st.lists(st.one_of(*reads, *writes), max_size=max_size)


def _check_sizes(sizes: Collection[int], possible: Collection[int]) -> None:
    if not sizes or not set(sizes) <= set(possible):
        raise ConfigurationError(f"an access has {', '.join(map(str, possible))} bytes, not {sizes}")


def _starts(base: int, length: int, size: int) -> st.SearchStrategy[Gpa]:
    return st.integers(base, base + length - size).map(Gpa)


def _out(port: int, data: bytes) -> IoOut:
    return IoOut(port, len(data), 1, data)
