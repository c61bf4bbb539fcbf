"""pykvm.testing.fuzz: it finds what a device must not do, shrinks it, and leaves good devices alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from pykvm.devices import ByteRegisters, Device, Disconnected, ManualClock, Serial
from pykvm.devices.acpipm import AcpiPm
from pykvm.devices.debugcon import DebugConsole
from pykvm.devices.debugexit import DebugExit
from pykvm.devices.fwcfg import FwCfg
from pykvm.devices.hpet import Hpet
from pykvm.devices.ioapic import IoApic
from pykvm.devices.pic import Pic
from pykvm.devices.pit import Pit
from pykvm.devices.postcode import PostCode
from pykvm.devices.rtc import Rtc
from pykvm.devices.vga import Vga
from pykvm.errors import ConfigurationError
from pykvm.kvm import MmioRead, MmioWrite
from pykvm.testing.fuzz import DeviceFault, fuzz_device
from pykvm.units import Gpa


class Registers(ByteRegisters):
    """Eight registers that hold what is written."""

    name = "registers"

    def __init__(self) -> None:
        self.values = bytearray(8)

    def read_register(self, offset: int) -> int:
        return self.values[offset]

    def write_register(self, offset: int, value: int) -> None:
        self.values[offset] = value


class Raises(Registers):
    def read_register(self, offset: int) -> int:
        if offset == 1 and self.values[2] & 0x80:
            raise KeyError(offset)
        return 0


class Exits(Registers):
    def write_register(self, offset: int, value: int) -> None:
        sys.exit("goodbye")


class Hangs(Registers):
    def write_register(self, offset: int, value: int) -> None:
        while value == 0x40:
            pass


class TooShort(Registers):
    def read(self, offset: int, size: int) -> bytes:
        return super().read(offset, size)[:4]


class NoBytes(Registers):
    def read(self, offset: int, size: int) -> bytes:
        return self.values[:size]  # type: ignore[return-value]  # a bytearray


class Leaks(Registers):
    def __init__(self) -> None:
        super().__init__()
        self.log: list[int] = []

    def write_register(self, offset: int, value: int) -> None:
        if offset == 3:
            self.log.append(value)


class Depends(Registers):
    accesses = 0

    def read_register(self, offset: int) -> int:
        Depends.accesses += 1
        if Depends.accesses == 5:
            raise ValueError("the fifth access of all devices")
        return 0


def fault_of(factory: Callable[[], Device], *, max_examples: int = 200, memory_limit: int = 8192) -> DeviceFault:
    with pytest.raises(DeviceFault) as caught:
        fuzz_device(factory, size=8, seed=1, max_examples=max_examples, time_limit=0.3, memory_limit=memory_limit)
    return caught.value


def test_a_good_device_passes() -> None:
    fuzz_device(Registers, size=8)


def test_an_exception_is_reported_with_the_accesses_that_lead_to_it() -> None:
    fault = fault_of(Raises)
    assert fault.accesses == (MmioWrite(Gpa(2), b"\x80"), MmioRead(Gpa(1), 1))
    assert str(fault).splitlines() == [
        "access 2 raised KeyError: 1",
        "",
        "    device = Raises()",
        '    device.write(0x2, bytes.fromhex("80"))',
        "    device.read(0x1, 1)",
    ]
    assert isinstance(fault.__cause__, KeyError)


def test_the_report_is_code_that_does_it_again() -> None:
    code = "\n".join(line.strip() for line in str(fault_of(Raises)).splitlines()[2:])
    with pytest.raises(KeyError):
        exec(code, {"Raises": Raises})


def test_a_guest_cannot_end_the_program() -> None:
    assert "raised SystemExit: goodbye" in str(fault_of(Exits))


def test_a_hang_is_interrupted_and_its_access_found() -> None:
    fault = fault_of(Hangs)
    assert "access 1 did not return within 0.3 s" in str(fault)
    (access,) = fault.accesses
    assert isinstance(access, MmioWrite)
    assert access.data == b"\x40"


def test_an_answer_of_the_wrong_length_is_found() -> None:
    fault = fault_of(TooShort)
    assert "answered with 4 bytes (b'\\x00\\x00\\x00\\x00'), where 5 were asked for" in str(fault)
    assert fault.accesses == (MmioRead(Gpa(0), 5),)


def test_an_answer_that_is_not_bytes_is_found() -> None:
    assert "answered with bytearray(b'\\x00'), where it must be bytes" in str(fault_of(NoBytes))


def test_memory_without_bounds_is_found() -> None:
    fault = fault_of(Leaks, max_examples=100)
    assert "memory grew by" in str(fault)
    assert "    for _ in range(" in str(fault)
    (access,) = fault.accesses
    assert isinstance(access, MmioWrite)
    assert (access.address, access.size) == (3, 1)


def test_memory_with_bounds_is_not_minded() -> None:
    class Remembers(Leaks):
        def write_register(self, offset: int, value: int) -> None:
            super().write_register(offset, value)
            del self.log[:-500]

    fuzz_device(Remembers, size=8, max_examples=50)


def test_a_device_that_is_not_new_every_time_is_told_so() -> None:
    Depends.accesses = 0
    fault = fault_of(Depends)
    assert str(fault).startswith("a new device does not do the same every time")
    assert "ValueError: the fifth access of all devices" in str(fault)


def test_the_same_seed_gives_the_same_accesses() -> None:
    def accesses(seed: int) -> list[tuple[int, bytes]]:
        seen: list[tuple[int, bytes]] = []

        class Watched(Registers):
            def write(self, offset: int, data: bytes) -> None:
                seen.append((offset, data))

        fuzz_device(Watched, size=4, max_examples=10, seed=seed)
        return seen[:100]

    assert accesses(1) == accesses(1) != accesses(2)


def test_a_lambda_has_no_name_to_print() -> None:
    assert "    device = device_factory()" in str(fault_of(lambda: TooShort()))


def test_outside_the_main_thread_all_but_hangs_is_found() -> None:
    caught: list[DeviceFault] = []

    def fuzz() -> None:
        try:
            fuzz_device(TooShort, size=8)
        except DeviceFault as fault:
            caught.append(fault)

    thread = threading.Thread(target=fuzz)
    thread.start()
    thread.join()
    assert len(caught) == 1


def test_the_alarm_of_the_program_is_given_back() -> None:
    handler, timer = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    signal.setitimer(signal.ITIMER_REAL, 1000)
    fuzz_device(Registers, size=4, max_examples=5)
    assert signal.getsignal(signal.SIGALRM) == handler
    assert 900 < signal.setitimer(signal.ITIMER_REAL, *timer)[0] <= 1000


@pytest.mark.parametrize("setting", ["size", "max_examples", "time_limit"])
def test_settings_must_be_above_zero(setting: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{setting} must be above 0, not 0"):
        fuzz_device(Registers, **{setting: 0})


def test_neither_pytest_nor_dev_kvm_is_needed() -> None:
    code = """
import builtins, os, sys
sys.modules["pytest"] = None
real = os.open
os.open = lambda path, *rest, **named: 1 / 0 if path == "/dev/kvm" else real(path, *rest, **named)
from pykvm.devices import Serial
from pykvm.testing import fuzz_device
fuzz_device(lambda: Serial(lambda data: None), size=8, max_examples=10)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---- the devices of pykvm ----

NEWYEAR = datetime(2030, 1, 1, tzinfo=UTC)
DEVICES: dict[str, tuple[Callable[[], Device], int]] = {
    "serial": (lambda: Serial(lambda data: None), 8),
    "pic": (lambda: Pic("pic", lambda level: None, is_master=True), 2),
    "pit": (lambda: Pit(ManualClock(), Disconnected()), 4),
    "rtc": (lambda: Rtc(ManualClock(), Disconnected(), NEWYEAR), 2),
    "hpet": (lambda: Hpet(ManualClock()), 0x400),
    "ioapic": (lambda: IoApic(lambda address, data: None), 0x100),
    "acpi-pm": (lambda: AcpiPm(ManualClock(), Disconnected(), lambda state: None), 12),
    "vga": (lambda: Vga(lambda address, size: bytes(size)), 32),
    "fw_cfg": (lambda: FwCfg(lambda gpa, size: bytes(size), lambda gpa, data: None, ram_size=1 << 20, cpus=1), 12),
    "debugcon": (lambda: DebugConsole(lambda data: None), 1),
    "debugexit": (lambda: DebugExit(lambda value: None), 1),
    "postcode": (lambda: PostCode(), 1),
}


@pytest.mark.parametrize("name", DEVICES)
def test_pykvms_devices_keep_their_promises(name: str) -> None:
    factory, size = DEVICES[name]
    fuzz_device(factory, size=size, max_examples=40)
