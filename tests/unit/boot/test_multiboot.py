"""Multiboot 1 without a CPU: headers, images by addresses, the information structure, and files that lie."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.boot import BootModule, BootOptions, Image, Platform
from pykvm.boot.multiboot import HeaderFlags, InfoFlags, find_header, multiboot_image
from pykvm.errors import ImageError
from pykvm.kvm.structs import Sregs
from pykvm.memory import GuestMemory
from pykvm.x86 import CpuState, Cr0, Mode, cpu_mode

MAGIC = 0x1BADB002
ADDRESSES = HeaderFlags.ADDRESSES.value


def header(flags: int = 0, *rest: int, checksum: int | None = None) -> bytes:
    if checksum is None:
        checksum = -(MAGIC + flags) & 0xFFFF_FFFF
    return struct.pack(f"<{3 + len(rest)}I", MAGIC, flags, checksum, *rest)


def kernel(flags: int = 0, *, at: int = 0x20_0000, code: bytes = b"\xf4" * 16, bss: int = 0) -> bytes:
    """Return a kernel that is loaded at ``at`` by the addresses in its header, which comes first."""
    size = 48 + len(code)
    head = header(flags | ADDRESSES, at, at, at + size, at + size + bss, at + 48, 0, 0, 0, 0)
    return head + code


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory("16M") as memory:
        yield memory


def start(image: Image, memory: GuestMemory) -> CpuState:
    assert image.protocol is not None
    image.load(memory)
    return image.protocol.start(image, Platform(memory, Sregs(), 1))


class Information:
    """The information structure as a kernel reads it."""

    def __init__(self, memory: GuestMemory, state: CpuState) -> None:
        assert state.regs.rax == 0x2BADB002
        self.memory = memory
        self.at = state.regs.rbx
        self.flags = InfoFlags(self.word(0))

    def word(self, offset: int) -> int:
        return self.memory.read_u32(self.at + offset)

    def text(self, address: int) -> str:
        return self.memory.read(address, 256).split(b"\0")[0].decode()

    @property
    def cmdline(self) -> str:
        return self.text(self.word(16))

    def modules(self) -> list[tuple[bytes, str]]:
        count, at = self.word(20), self.word(24)
        records = [[self.memory.read_u32(at + 16 * n + 4 * k) for k in range(4)] for n in range(count)]
        return [(self.memory.read(start, end - start), self.text(text)) for start, end, text, _ in records]

    def map(self) -> list[tuple[int, int, int]]:
        length, at = self.word(44), self.word(48)
        found = []
        while length > 0:
            size, base, count, kind = struct.unpack("<IQQI", self.memory.read(at, 24))
            found.append((base, count, kind))
            at, length = at + size + 4, length - size - 4
        return found


# ---- the header ----


def test_the_header_is_found_at_any_multiple_of_four_in_the_first_8_kib() -> None:
    assert find_header(bytes(8180) + header()) is not None
    assert find_header(bytes(8184) + header()) is None  # as a whole
    assert find_header(bytes(6) + header()) is None


def test_a_header_with_a_wrong_checksum_is_none_and_the_next_one_counts() -> None:
    data = header(3, checksum=0) + header(3)
    found = find_header(data)
    assert found is not None
    assert found.offset == 12
    assert find_header(header(checksum=7)) is None


@given(st.binary(max_size=200) | st.just(header(0x1_0007)) | st.builds(header, st.integers(0, 0xFFFF_FFFF)))
def test_any_file_is_a_kernel_or_explained(data: bytes) -> None:
    try:
        image = multiboot_image(data, name="k")
    except ImageError as error:
        assert str(error).startswith("k: ")
    else:
        assert image.mode is Mode.PROTECTED


@given(
    flags=st.sampled_from([0, 1, 2, 4, 7]),
    fields=st.lists(st.integers(0, 0xFFFF_FFFF) | st.just(0x20_0000), max_size=9),
)
def test_lying_addresses_are_an_image_or_explained(flags: int, fields: list[int]) -> None:
    data = header(flags | ADDRESSES, *fields) + bytes(64)
    try:
        image = multiboot_image(data, name="k")
    except ImageError:
        return
    assert len(image.segments[0].data) <= len(data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x7fELF", "has no multiboot header"),
        (header(1 << 5), "wants what nobody knows: bits 0x20"),
        (header(), "is no ELF file, and its multiboot header has no addresses"),
        (header(ADDRESSES, 0x1000, 0x2000, 0, 0, 0), "begins before the file"),
        (header(ADDRESSES, 0x2000, 0x1000, 0, 0, 0), "begins before the file"),
        (header(ADDRESSES, 0x1000, 0x1000, 0x9000, 0, 0x1000), "wants 0x8000 bytes from 0x0 on"),
        (header(ADDRESSES, 0x1000, 0x1000, 0x900, 0, 0x1000), "wants -0x700 bytes"),
        (header(ADDRESSES, 0x1000, 0x1000, 0, 0, 0x9000), "entry 0x9000 is in none of its segments"),
    ],
)
def test_what_is_wrong_with_a_header_is_said(data: bytes, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        multiboot_image(data, name="k")


def test_an_initrd_is_a_module_here() -> None:
    with pytest.raises(ImageError, match="initrd"):
        multiboot_image(kernel(), name="k", options=BootOptions(initrd=b"x"))


def test_addresses_say_what_of_the_file_goes_where() -> None:
    image = multiboot_image(bytes(8) + kernel(bss=0x1000), name="k")
    (segment,) = image.segments
    assert (segment.gpa, len(segment.data), segment.memory_size) == (0x20_0000, 64, 64 + 0x1000)
    assert image.entry == 0x20_0030


def test_without_an_end_the_whole_file_is_loaded() -> None:
    data = header(ADDRESSES, 0x20_0000, 0x20_0000, 0, 0, 0x20_0000, 0, 0, 0, 0) + b"\xf4" * 100
    assert len(multiboot_image(data, name="k").segments[0].data) == len(data)


# ---- the state, and the information structure ----


def test_the_cpu_is_in_flat_protected_mode(memory: GuestMemory) -> None:
    state = start(multiboot_image(kernel(), name="k"), memory)
    assert str(cpu_mode(state.sregs, state.regs)) == "protected mode, 32-bit code, ring 0"
    assert not state.sregs.cr0 & Cr0.PG.value
    assert state.regs.rip == 0x20_0030
    assert {state.sregs.cs.limit, state.sregs.ds.limit, state.sregs.ss.limit} == {0xFFFF_FFFF}


def test_the_information_tells_of_memory_and_the_command_line(memory: GuestMemory) -> None:
    image = multiboot_image(kernel(), name="/some/where/k.elf", options=BootOptions(append="a b=c"))
    info = Information(memory, start(image, memory))
    assert info.flags == InfoFlags.MEMORY | InfoFlags.CMDLINE | InfoFlags.MEMORY_MAP | InfoFlags.LOADER
    assert (info.word(4), info.word(8)) == (639, 15 * 1024)
    assert info.cmdline == "k.elf a b=c"
    assert info.word(20) == 0
    assert info.text(info.word(64)) == "pykvm"
    assert info.map() == [(0, 0x9FC00, 1), (0x9FC00, 0x60400, 2), (0x10_0000, 0xF0_0000, 1)]


def test_modules_are_at_page_borders_with_their_arguments(memory: GuestMemory) -> None:
    modules = (BootModule("one", b"first" * 1000, "x y"), BootModule("two", b""), BootModule("three", b"3"))
    info = Information(memory, start(multiboot_image(kernel(), name="k", options=BootOptions(modules=modules)), memory))
    assert info.flags & InfoFlags.MODULES
    assert info.modules() == [(b"first" * 1000, "one x y"), (b"", "two"), (b"3", "three")]
    assert all(memory.read_u32(info.word(24) + 16 * number) % 4096 == 0 for number in range(3))


def test_a_screen_that_is_asked_for_is_the_text_screen(memory: GuestMemory) -> None:
    info = Information(memory, start(multiboot_image(kernel(HeaderFlags.VIDEO.value), name="k"), memory))
    assert info.flags & InfoFlags.FRAMEBUFFER
    assert info.word(88) == 0xB8000
    assert (info.word(96), info.word(100), info.word(104)) == (160, 80, 25)
    assert memory.read(info.at + 108, 2) == b"\x10\x02"


@given(at=st.integers(0x1000, 0xF0_0000), bss=st.integers(0, 0x20_0000), count=st.integers(0, 3))
def test_nothing_overlaps_the_kernel(at: int, bss: int, count: int) -> None:
    modules = tuple(BootModule(f"m{number}", bytes([number + 1]) * 5000) for number in range(count))
    image = multiboot_image(kernel(at=at, bss=bss), name="k", options=BootOptions(modules=modules))
    with GuestMemory("32M") as memory:
        info = Information(memory, start(image, memory))
        (segment,) = image.segments
        assert memory.read(segment.gpa, len(segment.data)) == segment.data
        assert not any(memory.read(segment.gpa + len(segment.data), bss))
        assert [data for data, _ in info.modules()] == [module.data for module in modules]
        assert info.cmdline == "k"


def test_no_room_for_a_module_is_said(memory: GuestMemory) -> None:
    options = BootOptions(modules=(BootModule("big", bytes(15 * 1024 * 1024)),))
    with pytest.raises(ImageError, match="no room for the module big"):
        start(multiboot_image(kernel(), name="k", options=options), memory)
