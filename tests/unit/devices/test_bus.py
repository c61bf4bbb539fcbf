"""pykvm.devices.bus: registration, dispatch, straddling accesses, and addresses that nobody claims."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices import Bus, Range, Unclaimed
from pykvm.devices.bus import REMEMBERED
from pykvm.errors import BusError, UnclaimedAccessError

SIZE = 64  # addresses of the small bus below: small, so that random ranges meet


class Memory:
    """A device that is plain memory, and that keeps the accesses it sees."""

    def __init__(self, size: int, name: str = "memory", fill: int = 0) -> None:
        self.name = name
        self.data = bytearray([fill]) * size
        self.seen: list[tuple[str, int, int]] = []

    def read(self, offset: int, size: int) -> bytes:
        self.seen.append(("read", offset, size))
        return bytes(self.data[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        self.seen.append(("write", offset, len(data)))
        self.data[offset : offset + len(data)] = data


class Liar:
    """A device that answers with the wrong number of bytes."""

    name = "liar"

    def read(self, offset: int, size: int) -> bytes:
        return b"\x00" * (size + 1)

    def write(self, offset: int, data: bytes) -> None:
        pass


def small_bus(*ranges: tuple[int, int]) -> tuple[Bus, list[Memory]]:
    bus = Bus("port", SIZE)
    devices = [Memory(length, f"device{number}", fill=number) for number, (_, length) in enumerate(ranges)]
    for device, (base, length) in zip(devices, ranges, strict=True):
        bus.register(device, base, length)
    return bus, devices


# ---- registering ----


def test_ranges_are_listed_lowest_address_first() -> None:
    bus, (high, low) = small_bus((0x20, 4), (0x10, 4))
    assert bus.ranges == (Range(0x10, 4, low), Range(0x20, 4, high))


def test_a_range_prints_its_device_and_its_first_and_last_address() -> None:
    assert str(Range(0x3F8, 8, Memory(8, "serial"))) == "serial at 0x3f8-0x3ff"


@pytest.mark.parametrize(("base", "length"), [(0x10, 8), (0x0F, 2), (0x17, 1), (0x17, 9), (0x12, 2), (0x08, 0x20)])
def test_an_overlap_is_refused_and_both_devices_are_named(base: int, length: int) -> None:
    bus, (old,) = small_bus((0x10, 8))
    with pytest.raises(BusError, match=r"intruder at .* overlaps device0 at 0x10-0x17 on the port bus"):
        bus.register(Memory(length, "intruder"), base, length)
    assert bus.ranges == (Range(0x10, 8, old),)


def test_ranges_may_touch() -> None:
    bus, devices = small_bus((0x10, 8), (0x18, 8), (0x08, 8))
    assert [found.device for found in bus.ranges] == [devices[2], devices[0], devices[1]]


@pytest.mark.parametrize(("base", "length"), [(-1, 2), (SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1), (0, 0), (4, -1)])
def test_a_range_that_is_empty_or_leaves_the_bus_is_refused(base: int, length: int) -> None:
    bus = Bus("port", SIZE)
    with pytest.raises(BusError, match=r"memory cannot have .* the port bus has 0x0-0x3f"):
        bus.register(Memory(1), base, length)
    assert bus.ranges == ()


def test_a_device_may_fill_the_whole_bus() -> None:
    bus, (device,) = small_bus((0, SIZE))
    bus.write(SIZE - 1, b"\x07")
    assert device.data[-1] == 7


def test_one_device_answers_at_several_bases() -> None:
    bus, device = Bus("port", SIZE), Memory(4)
    bus.register(device, 0x00, 4)
    bus.register(device, 0x20, 4)
    bus.write(0x02, b"\xaa")
    assert bus.read(0x22, 1) == b"\xaa"


def test_unregistering_frees_all_ranges_of_the_device_and_no_other() -> None:
    bus, (other,) = small_bus((0x10, 4))
    device = Memory(4)
    bus.register(device, 0x00, 4)
    bus.register(device, 0x20, 4)
    bus.unregister(device)
    assert bus.ranges == (Range(0x10, 4, other),)
    assert bus.read(0x20, 1) == b"\xff"
    bus.register(Memory(4), 0x00, 4)


def test_unregistering_a_device_that_is_not_there_is_refused() -> None:
    bus, (device,) = small_bus((0x10, 4))
    with pytest.raises(BusError, match="stranger is not on the port bus"):
        bus.unregister(Memory(4, "stranger"))
    bus.unregister(device)
    with pytest.raises(BusError, match="device0 is not on the port bus"):
        bus.unregister(device)


@pytest.mark.parametrize(("address", "found"), [(0, False), (0xF, False), (0x10, True), (0x17, True), (0x18, False)])
def test_find_gives_the_range_of_an_address_or_none(address: int, found: bool) -> None:
    bus, (device,) = small_bus((0x10, 8))
    assert bus.find(address) == (Range(0x10, 8, device) if found else None)


# ---- accesses ----


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_an_access_inside_a_range_reaches_the_device_whole(size: int) -> None:
    bus, (device,) = small_bus((0x10, 8))
    data = bytes(range(1, 1 + size))
    bus.write(0x10, data)
    assert bus.read(0x10, size) == data
    assert device.seen == [("write", 0, size), ("read", 0, size)]


def test_a_read_that_straddles_two_devices_is_split_between_them() -> None:
    bus, (low, high) = small_bus((0x10, 4), (0x14, 4))
    assert bus.read(0x12, 4) == b"\x00\x00\x01\x01"
    assert low.seen == [("read", 2, 2)]
    assert high.seen == [("read", 0, 2)]


def test_a_write_that_straddles_two_devices_is_split_between_them() -> None:
    bus, (low, high) = small_bus((0x10, 4), (0x14, 4))
    bus.write(0x13, b"abcd")
    assert low.data == b"\0\0\0a"
    assert high.data == b"bcd\1"


def test_an_access_over_device_gap_device_gives_ones_in_the_gap_only() -> None:
    bus, (low, high) = small_bus((0x10, 2), (0x14, 2))
    assert bus.read(0x0F, 8) == b"\xff\x00\x00\xff\xff\x01\x01\xff"
    bus.write(0x0F, b"abcdefgh")
    assert low.data == b"bc"
    assert high.data == b"fg"


def test_an_access_over_the_end_of_the_address_space_reads_ones_there() -> None:
    bus, (device,) = small_bus((SIZE - 1, 1))
    assert bus.read(SIZE - 1, 4) == b"\x00\xff\xff\xff"
    bus.write(SIZE - 1, b"abcd")
    assert device.data == b"a"


def test_an_address_far_outside_the_bus_reads_ones() -> None:
    bus, _ = small_bus((0, SIZE))
    assert bus.read(2**64 - 4, 8) == b"\xff" * 8


@pytest.mark.parametrize(("address", "size"), [(0x10, 1), (0x0F, 2)])
def test_a_device_that_answers_with_the_wrong_length_is_named(address: int, size: int) -> None:
    bus = Bus("port", SIZE)
    bus.register(Liar(), 0x10, 4)
    with pytest.raises(BusError, match="liar at 0x10-0x13 answered a read of 1 bytes at 0x10 with 2"):
        bus.read(address, size)


# ---- unclaimed addresses ----


def test_an_unclaimed_read_gives_all_ones_and_an_unclaimed_write_is_lost() -> None:
    bus = Bus("port", SIZE)
    bus.write(0x20, b"\x00\x00")
    assert bus.read(0x20, 4) == b"\xff\xff\xff\xff"


def test_an_unclaimed_address_is_reported_once_whatever_is_done_there() -> None:
    reports: list[Unclaimed] = []
    bus = Bus("port", SIZE, on_unclaimed=reports.append)
    bus.read(0x20, 1)
    bus.read(0x20, 4)
    bus.write(0x20, b"\x00")
    bus.write(0x21, b"\x00\x00")
    assert reports == [Unclaimed("port", 0x20, 1, False), Unclaimed("port", 0x21, 2, True)]


def test_only_the_unclaimed_part_of_a_straddling_access_is_reported() -> None:
    reports: list[Unclaimed] = []
    bus = Bus("port", SIZE, on_unclaimed=reports.append)
    bus.register(Memory(2), 0x10, 2)
    bus.read(0x0E, 8)
    assert reports == [Unclaimed("port", 0x0E, 2, False), Unclaimed("port", 0x12, 4, False)]


def test_a_report_reads_as_a_sentence() -> None:
    assert str(Unclaimed("port", 0x70, 1, True)) == "nothing is at port 0x70: a write to it (1 byte) is lost"
    assert (
        str(Unclaimed("MMIO", 0xFEE00000, 4, False))
        == "nothing is at MMIO 0xfee00000: a read from it (4 bytes) gives all ones"
    )


def test_a_guest_that_sweeps_all_addresses_is_reported_a_bounded_number_of_times() -> None:
    reports: list[Unclaimed] = []
    bus = Bus("port", 1 << 16, on_unclaimed=reports.append)
    for _ in range(2):
        for address in range(1 << 16):
            assert bus.read(address, 1) == b"\xff"
    assert [report.address for report in reports] == list(range(REMEMBERED))


def test_a_strict_bus_raises_with_the_address_at_every_unclaimed_access() -> None:
    bus = Bus("port", SIZE, strict=True)
    for _ in range(2):
        with pytest.raises(UnclaimedAccessError, match="nothing is at port 0x20: a read from it") as caught:
            bus.read(0x20, 1)
        assert caught.value.address == 0x20
    with pytest.raises(UnclaimedAccessError, match="a write to it"):
        bus.write(0x20, b"\x00")


def test_a_strict_bus_refuses_a_straddling_access_before_any_device_sees_it() -> None:
    bus, device = Bus("port", SIZE, strict=True), Memory(4)
    bus.register(device, 0x10, 4)
    with pytest.raises(UnclaimedAccessError) as caught:
        bus.write(0x12, b"abcd")
    assert caught.value.address == 0x14
    with pytest.raises(UnclaimedAccessError):
        bus.read(0x12, 4)
    assert device.seen == []


def test_a_strict_bus_allows_what_is_claimed() -> None:
    bus, low, high = Bus("port", SIZE, strict=True), Memory(2), Memory(2)
    bus.register(low, 0x10, 2)
    bus.register(high, 0x12, 2)
    bus.write(0x11, b"ab")
    assert bus.read(0x10, 4) == b"\0ab\0"


# ---- any layout, any accesses: the bus against a dict of bytes ----

widths = st.sampled_from([1, 2, 4, 8])
addresses = st.integers(0, SIZE + 8)
layouts = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 12)), max_size=8)
reads = st.tuples(addresses, widths)
writes = st.tuples(addresses, widths.flatmap(lambda size: st.binary(min_size=size, max_size=size)))


def plug_in_what_fits(bus: Bus, layout: list[tuple[int, int]]) -> dict[int, int]:
    """Register memories by ``layout``, checking who is refused; return the model: a byte for each claimed address."""
    model: dict[int, int] = {}
    for base, length in layout:
        wanted = range(base, base + length)
        if wanted.stop > SIZE or any(address in model for address in wanted):
            with pytest.raises(BusError):
                bus.register(Memory(length), base, length)
        else:
            bus.register(Memory(length), base, length)
            model.update(dict.fromkeys(wanted, 0))
    return model


@given(layouts, st.lists(reads | writes, max_size=30))
def test_a_bus_of_memories_is_a_dict_of_bytes(
    layout: list[tuple[int, int]], accesses: list[tuple[int, int] | tuple[int, bytes]]
) -> None:
    reports: list[Unclaimed] = []
    bus = Bus("port", SIZE, on_unclaimed=reports.append)
    model = plug_in_what_fits(bus, layout)
    starts: list[int] = []  # of each run of unclaimed addresses
    for address, access in accesses:
        touched = range(address, address + (access if isinstance(access, int) else len(access)))
        starts += [here for here in touched if here not in model and (here == address or here - 1 in model)]
        if isinstance(access, int):
            assert list(bus.read(address, access)) == [model.get(address + n, 0xFF) for n in range(access)]
        else:
            bus.write(address, access)
            model.update({address + n: byte for n, byte in enumerate(access) if address + n in model})
    assert [report.address for report in reports] == list(dict.fromkeys(starts))


@given(layouts, st.lists(reads | writes, max_size=30))
def test_a_strict_bus_raises_just_where_the_dict_has_no_byte(
    layout: list[tuple[int, int]], accesses: list[tuple[int, int] | tuple[int, bytes]]
) -> None:
    bus = Bus("port", SIZE, strict=True)
    model = plug_in_what_fits(bus, layout)
    for address, access in accesses:
        size = access if isinstance(access, int) else len(access)
        missing = [address + n for n in range(size) if address + n not in model]
        try:
            bus.read(address, access) if isinstance(access, int) else bus.write(address, access)
        except UnclaimedAccessError as error:
            assert error.address == missing[0]
        else:
            assert not missing


@given(layouts, addresses)
def test_find_agrees_with_the_dict(layout: list[tuple[int, int]], address: int) -> None:
    bus = Bus("port", SIZE)
    model = plug_in_what_fits(bus, layout)
    found = bus.find(address)
    assert (found is not None) == (address in model)
    assert found is None or found.base <= address < found.end
