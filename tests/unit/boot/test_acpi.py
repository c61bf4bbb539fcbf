"""pykvm.boot.acpi and aml: what a kernel finds that looks for ACPI the way the specification tells it to."""

from __future__ import annotations

import itertools
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.boot import aml
from pykvm.boot.acpi import acpi_tables, wake_vector
from pykvm.errors import ConfigurationError, GuestMemoryError
from pykvm.memory import GuestMemory, platform
from pykvm.units import MiB

HPET_CAPABILITIES = 0x8086_A201
CPUS = st.integers(1, 255)


# ---- a kernel's side: a small parser that knows nothing of the writer ----


@dataclass
class Table:
    """A table with its header taken apart."""

    at: int
    data: bytes

    @property
    def signature(self) -> str:
        return self.data[:4].decode()

    def u(self, offset: int, size: int) -> int:
        return int.from_bytes(self.data[offset : offset + size], "little")

    def address(self, offset: int) -> tuple[int, int, int, int]:
        """Return a generic address structure: space, bits, access size, address."""
        assert self.u(offset + 2, 1) == 0, "bit offset"
        return self.u(offset, 1), self.u(offset + 1, 1), self.u(offset + 3, 1), self.u(offset + 4, 8)


class Kernel:
    """Searches memory that holds the tables and nothing else."""

    def __init__(self, cpus: int, hpet: int | None = None) -> None:
        self.memory = bytearray(MiB)
        self.written: list[tuple[int, int]] = []
        for gpa, data in acpi_tables(cpus, hpet):
            self.memory[gpa : gpa + len(data)] = data
            self.written.append((gpa, gpa + len(data)))

    def rsdp(self) -> int:
        found = [
            at
            for at in range(0xE0000, 0x100000, 16)
            if self.memory[at : at + 8] == b"RSD PTR " and sum(self.memory[at : at + 20]) % 256 == 0
        ]
        assert len(found) == 1
        return found[0]

    def table(self, at: int) -> Table:
        size = int.from_bytes(self.memory[at + 4 : at + 8], "little")
        table = Table(at, bytes(self.memory[at : at + size]))
        assert sum(table.data) % 256 == 0, table.signature
        return table

    def listed(self, *, by_xsdt: bool) -> dict[str, Table]:
        """Return the tables that the RSDT or the XSDT lists."""
        rsdp = self.rsdp()
        at, size = (rsdp + 24, 8) if by_xsdt else (rsdp + 16, 4)
        root = self.table(int.from_bytes(self.memory[at : at + size], "little"))
        assert root.signature == ("XSDT" if by_xsdt else "RSDT")
        assert (len(root.data) - 36) % size == 0
        tables = [self.table(root.u(entry, size)) for entry in range(36, len(root.data), size)]
        assert len({table.signature for table in tables}) == len(tables)
        return {table.signature: table for table in tables}

    @property
    def fadt(self) -> Table:
        return self.listed(by_xsdt=True)["FACP"]

    @property
    def madt(self) -> list[bytes]:
        data = self.listed(by_xsdt=True)["APIC"].data
        entries, at = [], 44
        while at < len(data):
            entries.append(data[at : at + data[at + 1]])
            at += data[at + 1]
        assert at == len(data)
        return entries


# ---- finding ----


@given(cpus=CPUS, hpet=st.none() | st.just(HPET_CAPABILITIES))
def test_a_kernel_finds_every_table_through_rsdt_and_xsdt_and_every_checksum_is_right(
    cpus: int, hpet: int | None
) -> None:
    kernel = Kernel(cpus, hpet)
    wanted = ["FACP", "APIC"] if hpet is None else ["FACP", "APIC", "HPET"]
    assert list(kernel.listed(by_xsdt=False)) == list(kernel.listed(by_xsdt=True)) == wanted
    assert kernel.listed(by_xsdt=False) == kernel.listed(by_xsdt=True)
    assert kernel.table(kernel.fadt.u(40, 4)).signature == "DSDT"


@given(cpus=CPUS)
def test_the_tables_do_not_overlap_and_stay_in_their_place(cpus: int) -> None:
    kernel = Kernel(cpus, HPET_CAPABILITIES)
    ranges = sorted(kernel.written)
    assert ranges[0][0] == platform.RSDP == 0xE0000
    assert ranges[-1][1] <= platform.ACPI_TABLES_END == 0xE8000
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ranges))
    assert all(start % 16 == 0 for start, _ in ranges)


def test_the_rsdp_is_of_revision_2_and_its_second_checksum_covers_all_of_it() -> None:
    kernel = Kernel(1)
    rsdp = kernel.rsdp()
    data = kernel.memory[rsdp : rsdp + 36]
    assert data[15] == 2
    assert int.from_bytes(data[20:24], "little") == 36
    assert sum(data) % 256 == 0


def test_tables_are_made_once() -> None:
    assert acpi_tables(4) is acpi_tables(4)


@pytest.mark.parametrize("cpus", [0, -1, 256])
def test_a_number_of_cpus_that_has_no_apic_ids_is_refused(cpus: int) -> None:
    with pytest.raises(ConfigurationError, match=f"cannot describe {cpus} CPUs: have 1 to 255"):
        acpi_tables(cpus)


# ---- FADT ----


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [
        (8, 1, 4),  # revision
        (45, 1, 1),  # a desktop
        (46, 2, 9),  # SCI_INT
        (48, 4, 0xB2),  # SMI_CMD
        (52, 1, 0xF1),  # ACPI_ENABLE
        (53, 1, 0xF0),  # ACPI_DISABLE
        (56, 4, 0x600),  # PM1a_EVT_BLK
        (60, 4, 0),  # PM1b_EVT_BLK
        (64, 4, 0x604),  # PM1a_CNT_BLK
        (68, 4, 0),  # PM1b_CNT_BLK
        (72, 4, 0),  # PM2_CNT_BLK
        (76, 4, 0x608),  # PM_TMR_BLK
        (80, 8, 0),  # GPE0_BLK, GPE1_BLK
        (88, 1, 4),  # PM1_EVT_LEN
        (89, 1, 2),  # PM1_CNT_LEN
        (91, 1, 4),  # PM_TMR_LEN
        (96, 2, 101),  # P_LVL2_LAT: no C2
        (98, 2, 1001),  # P_LVL3_LAT: no C3
        (108, 1, 0x32),  # CENTURY
        (109, 2, 0b11),  # IAPC_BOOT_ARCH: legacy devices, 8042
        (128, 1, 0x06),  # RESET_VALUE
        (132, 8, 0),  # X_FIRMWARE_CTRL: only one of the two may be given
    ],
)
def test_the_fadt_says_what_hardware_there_is(offset: int, size: int, value: int) -> None:
    fadt = Kernel(1).fadt
    assert len(fadt.data) == 244
    assert fadt.u(offset, size) == value


def test_the_fadts_flags() -> None:
    flags = Kernel(1).fadt.u(112, 4)
    assert {bit for bit in range(32) if flags >> bit & 1} == {0, 2, 5, 10}


@pytest.mark.parametrize(
    ("offset", "address"),  # space 1 is I/O; bits; access size 1 is a byte, 2 a word, 3 a double word
    [
        (116, (1, 8, 1, 0xCF9)),  # RESET_REG
        (148, (1, 32, 2, 0x600)),  # X_PM1a_EVT_BLK
        (160, (0, 0, 0, 0)),  # X_PM1b_EVT_BLK
        (172, (1, 16, 2, 0x604)),  # X_PM1a_CNT_BLK
        (184, (0, 0, 0, 0)),  # X_PM1b_CNT_BLK
        (196, (0, 0, 0, 0)),  # X_PM2_CNT_BLK
        (208, (1, 32, 3, 0x608)),  # X_PM_TMR_BLK
        (220, (0, 0, 0, 0)),  # X_GPE0_BLK
        (232, (0, 0, 0, 0)),  # X_GPE1_BLK
    ],
)
def test_the_fadts_generic_addresses(offset: int, address: tuple[int, int, int, int]) -> None:
    assert Kernel(1).fadt.address(offset) == address


def test_both_addresses_of_the_dsdt_are_the_same() -> None:
    fadt = Kernel(1).fadt
    assert fadt.u(40, 4) == fadt.u(140, 8)


# ---- FACS and waking ----


def test_the_facs_is_aligned_to_64_bytes_and_has_no_64_bit_vector() -> None:
    kernel = Kernel(1)
    at = kernel.fadt.u(36, 4)
    assert at == platform.FACS
    assert at % 64 == 0
    facs = kernel.memory[at : at + 64]
    assert facs[:8] == b"FACS" + struct.pack("<I", 64)
    assert facs[8:] == bytes(56), "no vector, no lock, version 0"


def test_the_wake_vector_is_what_the_guest_wrote_into_the_facs() -> None:
    with GuestMemory(MiB) as memory:
        for gpa, data in acpi_tables(1):
            memory.write(gpa, data)
        assert wake_vector(memory) == 0
        memory.write_u32(platform.FACS + 12, 0x9A000)
        assert wake_vector(memory) == 0x9A000


def test_without_memory_for_the_facs_there_is_no_wake_vector() -> None:
    with GuestMemory("64K") as memory, pytest.raises(GuestMemoryError):
        wake_vector(memory)


# ---- MADT ----


@given(cpus=CPUS)
def test_the_madt_has_an_enabled_local_apic_for_every_cpu(cpus: int) -> None:
    apics = [entry for entry in Kernel(cpus).madt if entry[0] == 0]
    assert apics == [struct.pack("<BBBBI", 0, 8, cpu, cpu, 1) for cpu in range(cpus)]


def test_the_madt_names_the_local_apics_address_and_says_that_there_are_pics() -> None:
    madt = Kernel(1).listed(by_xsdt=True)["APIC"]
    assert (madt.u(36, 4), madt.u(40, 4)) == (0xFEE0_0000, 1)


@pytest.mark.parametrize(
    ("type", "entries"),
    [
        (1, [struct.pack("<BBBBII", 1, 12, 0, 0, 0xFEC0_0000, 0)]),
        # IRQ 0 is GSI 2, by edge and active high; IRQ 9 is GSI 9, by level and active high.
        (2, [struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0b0101), struct.pack("<BBBBIH", 2, 10, 0, 9, 9, 0b1101)]),
        (4, [struct.pack("<BBBHB", 4, 6, 0xFF, 0b0101, 1)]),
    ],
)
def test_the_madt_says_where_interrupts_go(type: int, entries: list[bytes]) -> None:
    madt = Kernel(3).madt
    assert [entry for entry in madt if entry[0] == type] == entries
    assert {entry[0] for entry in madt} == {0, 1, 2, 4}


# ---- HPET ----


def test_the_hpet_is_described_as_it_is() -> None:
    hpet = Kernel(1, HPET_CAPABILITIES).listed(by_xsdt=True)["HPET"]
    assert len(hpet.data) == 56
    assert hpet.u(36, 4) == HPET_CAPABILITIES
    assert hpet.address(40) == (0, 64, 4, 0xFED0_0000)
    assert hpet.u(52, 4) == 0


# ---- DSDT ----


def test_a_kernel_that_searches_the_dsdt_for_s5_finds_how_to_power_off() -> None:
    kernel = Kernel(1)
    data = kernel.table(kernel.fadt.u(40, 4)).data
    for name, slp_typ in ((b"_S5_", 0), (b"_S3_", 1), (b"_S0_", 5)):
        at = data.index(name)
        assert data[at - 1] == 0x08, "NameOp"
        assert data[at + 4] == 0x12, "PackageOp"
        at += 5
        at += (data[at] >> 6) + 2  # PkgLength and the number of elements
        for _ in range(2):
            at += data[at] == 0x0A  # BytePrefix
            assert data[at] == slp_typ
            at += 1


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a 02"),
        (0xFF, "0a ff"),
        (0x100, "0b 00 01"),
        (0xFFFF, "0b ff ff"),
        (0x1_0000, "0c 00 00 01 00"),
        (0xFFFF_FFFF, "0c ff ff ff ff"),
        (0x1_0000_0000, "0e 00 00 00 00 01 00 00 00"),
    ],
)
def test_an_integer_is_as_short_as_it_goes(value: int, code: str) -> None:
    assert aml.integer(value) == bytes.fromhex(code)


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_an_integer_has_64_bits(value: int) -> None:
    with pytest.raises(ConfigurationError, match="no integer in AML"):
        aml.integer(value)


@pytest.mark.parametrize("name", ["", "_S5__", "\xe9"])
def test_a_name_has_four_characters(name: str) -> None:
    with pytest.raises(ConfigurationError, match="no name in AML"):
        aml.name(name, b"")


@pytest.mark.parametrize(
    ("content", "code"),
    [(0, "01"), (62, "3f"), (63, "41 04"), (0xFFD, "4f ff"), (0xFFE, "81 00 01"), (0x10_0000, "c4 00 00 01")],
)
def test_a_package_length_counts_itself(content: int, code: str) -> None:
    assert aml.package_length(content) == bytes.fromhex(code)


def test_a_package_that_is_too_long_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="255 elements"):
        aml.package(*[b"\0"] * 256)
    with pytest.raises(ConfigurationError, match="less than"):
        aml.package_length(1 << 28)


# ---- the reference implementation ----


@pytest.fixture
def iasl() -> str:
    """ACPICA's compiler and disassembler."""
    found = shutil.which("iasl")
    if found is None:
        reason = "iasl is not installed: apt-get install acpica-tools"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("cpus", [1, 4, 255])
def test_acpica_disassembles_every_table_and_has_nothing_to_say_about_it(iasl: str, tmp_path: Path, cpus: int) -> None:
    tables = {data[:4].decode(): data for _, data in acpi_tables(cpus, HPET_CAPABILITIES)}
    del tables["RSD "]  # iasl knows files that begin with a table; the RSDP is none
    assert set(tables) == {"FACS", "DSDT", "FACP", "APIC", "HPET", "RSDT", "XSDT"}
    for signature, data in tables.items():
        (tmp_path / f"{signature}.dat").write_bytes(data)
        said = run(tmp_path, iasl, "-d", f"{signature}.dat")
        source = (tmp_path / f"{signature}.dsl").read_text()
        for word in ("warning", "error", "invalid", "incorrect", "unknown"):
            assert word not in (said + source).lower(), said + source


def test_acpica_compiles_what_it_read_to_the_same_sleep_states(iasl: str, tmp_path: Path) -> None:
    dsdt = next(data for _, data in acpi_tables(1) if data[:4] == b"DSDT")
    (tmp_path / "dsdt.dat").write_bytes(dsdt)
    run(tmp_path, iasl, "-d", "dsdt.dat")
    said = run(tmp_path, iasl, "-p", "again", "dsdt.dsl")
    assert "0 Errors, 0 Warnings" in said
    assert (tmp_path / "again.aml").read_bytes()[36:] == dsdt[36:]
