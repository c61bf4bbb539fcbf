"""Linux's boot protocols and PVH without a kernel: headers, zero pages, start information, and files that lie."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.boot import BootModule, BootOptions, Image, Platform
from pykvm.boot.elf import elf_notes
from pykvm.boot.linux import bzimage_image, linux_version, vmlinux_image
from pykvm.boot.pvh import pvh_entry, pvh_image
from pykvm.errors import ImageError
from pykvm.kvm.structs import Sregs
from pykvm.memory import GuestMemory
from pykvm.units import MiB
from pykvm.x86 import CpuState, Efer, Mode

KERNEL = b"\xf4" * 4096


def bzimage(kernel: bytes = KERNEL, **fields: int) -> bytes:
    """Return a bzImage of one setup sector and protocol 2.15, with ``fields`` by their names."""
    wanted = {"version": 0x020F, "loadflags": 1, "code32_start": 0x10_0000, "xloadflags": 1, "setup_sects": 1} | fields
    data = bytearray(1024)
    data[0x1FE:0x206] = b"\x55\xaa\xeb\x6aHdrS"
    for name, value in wanted.items():
        offset, size = PLACES[name]
        data[offset : offset + size] = value.to_bytes(size, "little")
    data[0x300:0x310] = b"6.1.0-test (x@y)"
    data[0x20E:0x210] = (0x100).to_bytes(2, "little")
    return bytes(data) + kernel


PLACES = {
    "setup_sects": (0x1F1, 1),
    "version": (0x206, 2),
    "loadflags": (0x211, 1),
    "code32_start": (0x214, 4),
    "initrd_addr_max": (0x22C, 4),
    "xloadflags": (0x236, 2),
    "cmdline_size": (0x238, 4),
    "pref_address": (0x258, 8),
    "init_size": (0x260, 4),
}


def elf64(code: bytes = KERNEL, note: bytes = b"", *, physical: int = 0x100_0000) -> bytes:
    """Return an ELF64 executable whose code is at ``physical``, with the notes ``note``."""
    offset = 64 + 2 * 56
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, physical, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, offset, physical, physical, len(code), len(code), 4096)
    notes = struct.pack("<IIQQQQQQ", 4, 4, offset + len(code), 0, 0, len(note), len(note), 4)
    return head + load + notes + code + note


def xen_note(address: int, kind: int = 18, size: int = 8) -> bytes:
    return struct.pack("<III", 4, size, kind) + b"Xen\0" + address.to_bytes(size, "little")


BANNER = b"Linux version 6.1.2-test (me@here) #1"
VMLINUX = elf64(BANNER + KERNEL)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory("64M") as memory:
        yield memory


def start(image: Image, memory: GuestMemory) -> CpuState:
    assert image.protocol is not None
    image.load(memory)
    return image.protocol.start(image, Platform(memory, Sregs(), 1))


class ZeroPage:
    def __init__(self, memory: GuestMemory, state: CpuState) -> None:
        self._memory = memory
        self.at = state.regs.rsi

    def word(self, offset: int) -> int:
        return self._memory.read_u32(self.at + offset)

    @property
    def cmdline(self) -> str:
        return self._memory.read(self.word(0x228), 4096).split(b"\0")[0].decode()

    @property
    def initrd(self) -> bytes:
        return self._memory.read(self.word(0x218), self.word(0x21C))

    @property
    def map(self) -> list[tuple[int, int, int]]:
        count = self._memory.read_u8(self.at + 0x1E8)
        return [struct.unpack("<QQI", self._memory.read(self.at + 0x2D0 + 20 * n, 20)) for n in range(count)]


# ---- bzImage ----


def test_a_bzimage_starts_at_its_64_bit_entry_in_long_mode(memory: GuestMemory) -> None:
    image = bzimage_image(bzimage(), name="k")
    assert (image.entry, image.mode, image.segments[0].gpa) == (0x10_0200, Mode.LONG, 0x10_0000)
    assert image.format == "Linux 6.1.0-test, bzImage, 64-bit entry"
    state = start(image, memory)
    assert Efer.LMA.value & state.sregs.efer
    assert (state.sregs.cs.selector, state.sregs.ds.selector, state.sregs.cs.l) == (0x10, 0x18, 1)
    assert memory.read(state.sregs.gdt.base + 0x10, 8) == (0x00AF9B000000FFFF).to_bytes(8, "little")


@pytest.mark.parametrize("image", [bzimage(xloadflags=0), bzimage(version=0x020B)])
def test_a_kernel_without_a_64_bit_entry_starts_at_its_first_byte(memory: GuestMemory, image: bytes) -> None:
    made = bzimage_image(image, name="k")
    assert (made.entry, made.mode) == (0x10_0000, Mode.PROTECTED)
    state = start(made, memory)
    assert (state.sregs.efer, state.regs.rbp, state.regs.rdi, state.regs.rbx) == (0, 0, 0, 0)
    assert state.sregs.cs.db
    with pytest.raises(ImageError, match=r"no 64-bit entry.*linux32"):
        bzimage_image(image, name="k", is_64=True)


def test_a_kernel_goes_where_it_prefers_with_room_to_unpack_itself() -> None:
    image = bzimage_image(bzimage(pref_address=0x100_0000, init_size=8 * MiB), name="k")
    (segment,) = image.segments
    assert (segment.gpa, segment.memory_size, segment.data) == (0x100_0000, 8 * MiB, KERNEL)


def test_the_zero_page_has_the_header_the_command_line_the_initrd_and_the_map(memory: GuestMemory) -> None:
    options = BootOptions(append="console=ttyS0 quiet", initrd=b"initrd" * 1000)
    page = ZeroPage(memory, start(bzimage_image(bzimage(cmdline_size=255), name="k", options=options), memory))
    assert page.at % 4096 == 0
    assert memory.read(page.at + 0x202, 4) == b"HdrS"
    assert memory.read_u8(page.at + 0x210) == 0xFF
    assert page.cmdline == "console=ttyS0 quiet"
    assert page.initrd == b"initrd" * 1000
    assert page.word(0x218) % 4096 == 0
    assert page.map == [(0, 0x9FC00, 1), (0x9FC00, 0x60400, 2), (0x10_0000, 63 * MiB, 1)]


def test_the_initrd_is_as_high_as_the_kernel_allows(memory: GuestMemory) -> None:
    options = BootOptions(initrd=b"x" * 5000)
    low = bzimage_image(bzimage(initrd_addr_max=0x1FF_FFFF), name="k", options=options)
    assert ZeroPage(memory, start(low, memory)).word(0x218) == 0x1FF_E000
    high = bzimage_image(bzimage(), name="k", options=options)
    assert ZeroPage(memory, start(high, memory)).word(0x218) == 64 * MiB - 0x2000


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is no bzImage"),
        (bytes(4096), "is no bzImage"),
        (bzimage(version=0x0200), "speaks boot protocol 2.00"),
        (bzimage(loadflags=0), "is a zImage"),
        (bzimage(setup_sects=64), "is truncated: its kernel begins at 0x8200"),
        (bzimage(b""), "is truncated"),
    ],
)
def test_what_is_wrong_with_a_bzimage_is_said(data: bytes, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        bzimage_image(data, name="k")


def test_a_command_line_that_is_too_long_is_refused(memory: GuestMemory) -> None:
    image = bzimage_image(bzimage(cmdline_size=255), name="k", options=BootOptions(append="x" * 256))
    with pytest.raises(ImageError, match="has 256 bytes, and this kernel reads 255"):
        start(image, memory)


def test_a_machine_that_is_too_small_is_said_to_be() -> None:
    image = bzimage_image(bzimage(), name="k", options=BootOptions(initrd=bytes(3 * MiB)))
    with GuestMemory("2M") as memory, pytest.raises(ImageError, match="no room for the initrd"):
        start(image, memory)


@given(changes=st.dictionaries(st.integers(0x1F1, 0x270), st.integers(0, 255), max_size=20), cut=st.integers(0, 6000))
def test_a_damaged_bzimage_starts_or_is_explained(changes: dict[int, int], cut: int) -> None:
    data = bytearray(bzimage())
    for offset, value in changes.items():
        data[offset] = value
    with GuestMemory("4M") as memory:
        try:
            start(bzimage_image(bytes(data[:cut]), name="k", options=BootOptions("a", b"i")), memory)
        except ImageError as error:
            assert str(error)


# ---- vmlinux, and PVH ----


def test_an_uncompressed_kernel_is_told_by_its_banner() -> None:
    assert linux_version(VMLINUX) == "6.1.2-test"
    assert linux_version(KERNEL) is None
    image = vmlinux_image(VMLINUX, name="v")
    assert (image.format, image.entry, image.mode) == ("Linux 6.1.2-test, ELF64", 0x100_0000, Mode.LONG)


def test_an_uncompressed_kernel_gets_a_zero_page_too(memory: GuestMemory) -> None:
    options = BootOptions(append="quiet", initrd=b"i")
    page = ZeroPage(memory, start(vmlinux_image(VMLINUX, name="v", options=options), memory))
    assert (page.cmdline, page.initrd) == ("quiet", b"i")
    assert memory.read(page.at + 0x202, 4) == b"HdrS"


def test_a_note_says_where_pvh_starts() -> None:
    assert pvh_entry(elf64(note=xen_note(0x100_0010))) == 0x100_0010
    assert pvh_entry(elf64(note=xen_note(1, kind=6) + xen_note(0x100_0010, size=4))) == 0x100_0010
    assert pvh_entry(elf64(note=xen_note(0x10, kind=17))) is None
    assert pvh_entry(b"\x7fELF") is None
    with pytest.raises(ImageError, match="no PVH entry"):
        pvh_image(elf64(), name="p")
    with pytest.raises(ImageError, match="in none of its segments"):
        pvh_image(elf64(note=xen_note(0x10)), name="p")


def test_pvh_tells_of_modules_memory_and_the_command_line(memory: GuestMemory) -> None:
    options = BootOptions("x=1", b"initrd", (BootModule("/a/m", b"module", "y"),))
    state = start(pvh_image(elf64(note=xen_note(0x100_0010)), name="p", options=options), memory)
    assert (state.regs.rip, state.sregs.cs.db) == (0x100_0010, 1)
    magic, version, _, count, modules, cmdline, _, table, entries, _ = struct.unpack(
        "<IIIIQQQQII", memory.read(state.regs.rbx, 56)
    )
    assert (magic, version, count, entries) == (0x336EC578, 1, 2, 3)
    assert memory.read(cmdline, 4) == b"x=1\0"
    found = [struct.unpack("<QQQQ", memory.read(modules + 32 * number, 32)) for number in range(2)]
    assert [memory.read(at, size) for at, size, _, _ in found] == [b"initrd", b"module"]
    assert memory.read(found[1][2], 4) == b"m y\0"
    assert struct.unpack("<QQII", memory.read(table, 24)) == (0, 0x9FC00, 1, 0)


@given(st.binary(max_size=100))
def test_any_notes_can_be_read(note: bytes) -> None:
    assert all(len(content) <= len(note) for _, _, content in elf_notes(elf64(note=note)))
