"""pykvm.Machine on KVM: loading, running, stopping, reports, closing."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pytest

from pykvm import GuestMemory, Machine, Mode, assemble
from pykvm.errors import (
    ClosedError,
    ConfigurationError,
    GuestMemoryError,
    ImageError,
    InUseError,
    PagingError,
    UnclaimedAccessError,
)
from pykvm.kvm import Exit, Hlt, InternalError, IoIn, IoOut, Shutdown
from pykvm.machine import Crashed, DebugExitWritten, Halted, Interrupted, LastExits, Stop, Stopped, TimedOut
from pykvm.testing import Guests
from pykvm.units import GiB
from pykvm.x86 import Cr0, real_mode, reset_vector

SPIN = b"\xeb\xfe"  # jmp .
STORM = b"\xe6\x80\xeb\xfc"  # 1: out %al, $0x80; jmp 1b
STORM_OF_HALTS = b"\xe6\x80\xf4\xeb\xfb"  # 1: out %al, $0x80; hlt; jmp 1b
PRINT_A = b"\xba\xf8\x03\xb0\x41\xee\xf4"  # mov $0x3f8, %dx; mov $'A', %al; out %al, (%dx); hlt


def test_a_guest_in_long_mode_ends_with_its_debug_exit_code(guest: Guests) -> None:
    result = guest("mov $42, %al; out %al, $0xf4", mode="long", memory="16M")
    assert result.stop == DebugExitWritten(42)
    assert result.exit_code == 85
    assert result.run.status == 85
    assert result.report == ""


def test_a_flat_binary_starts_in_real_mode_and_prints(guest: Guests) -> None:
    printed: list[bytes] = []
    result = guest(PRINT_A, memory="1M", serial_output=printed.append)
    assert result.stop == Halted()
    assert result.run.status == 0
    assert result.serial.text == "A"
    assert printed == [b"A"]
    assert result.registers.rip == 0x8000 + len(PRINT_A)
    assert IoOut(0x3F8, 1, 1, b"A") in result.run.last_exits


@pytest.mark.parametrize("code", [SPIN, STORM], ids=["jmp .", "exit storm"])
def test_a_time_limit_ends_a_guest_that_never_stops(guest: Guests, code: bytes) -> None:
    result = guest(code, timeout=0.15, memory="1M")
    assert result.stop == TimedOut(0.15)
    assert result.run.status == 124
    assert "time limit of 0.15 s" in result.report


def test_the_report_of_an_endless_loop_names_it(guest: Guests) -> None:
    assert "jumps to itself" in guest(SPIN, timeout=0.1, memory="1M").report


def test_a_guest_goes_on_when_it_is_run_again(guest: Guests) -> None:
    machine = guest.machine("1M")
    machine.load(b"\xf4" + PRINT_A)
    assert machine.run().serial.text == ""
    assert machine.run().serial.text == "A"


def test_a_timed_out_guest_goes_on_when_it_is_run_again(guest: Guests) -> None:
    machine = guest.machine("1M")
    machine.load(b"\x80\x3e\x00\x90\x00\x74\xf9\xf4")  # 1: cmpb $0, 0x9000; je 1b; hlt
    assert isinstance(machine.run(timeout=0.1).stop, TimedOut)
    machine.memory.write_u8(0x9000, 1)
    assert machine.run().stop == Halted()


def test_input_reaches_a_polling_guest(guest: Guests) -> None:
    poll = b"\xba\xfd\x03\xec\xa8\x01\x74\xfb\xba\xf8\x03\xec\xf4"  # 1: in LSR; test $1; jz 1b; in RBR; hlt
    assert guest(poll, memory="1M", input=b"x").registers.rax & 0xFF == ord("x")


def test_registers_are_true_in_the_middle_of_an_input(guest: Guests) -> None:
    class Stopper:
        name = "stopper"

        def __init__(self) -> None:
            self.machine: Machine | None = None

        def read(self, offset: int, size: int) -> bytes:
            assert self.machine is not None
            self.machine.stop()
            return b"\x5a"

        def write(self, offset: int, data: bytes) -> None:
            pass

    stopper = Stopper()
    machine = guest.machine("1M")
    stopper.machine = machine
    machine.pio.register(stopper, 0x66, 1)
    machine.load(b"\xe4\x66\xf4")  # in $0x66, %al; hlt
    result = machine.run()
    assert result.stop == Stopped()
    assert result.registers.rax & 0xFF == 0x5A
    assert result.registers.rip == 0x8002


def test_a_triple_fault_is_explained(guest: Guests) -> None:
    result = guest("ud2", mode="long")
    assert isinstance(result.stop, Crashed)
    assert result.stop.exit == Shutdown()
    assert result.run.status == 125
    for words in ("triple fault", "no IDT was loaded", "ud2", "PML4", "rip", "cr0"):
        assert words in result.report


def test_an_instruction_that_kvm_cannot_emulate_is_shown(guest: Guests) -> None:
    # An operand outside all memory slots makes every host's KVM emulate, and no emulator of KVM's has popcnt.
    result = guest("mov $0xe0000000, %ebx; popcnt (%rbx), %eax; hlt", mode="long")
    assert isinstance(result.stop, Crashed)
    assert isinstance(result.stop.exit, InternalError)
    assert "popcnt" in result.report


def test_a_jump_into_nothing_is_explained(guest: Guests) -> None:
    result = guest("mov $0x90000000, %eax; jmp *%rax", mode="long", timeout=1)
    assert "0x90000000" in result.report
    assert "no memory" in result.report


def test_unclaimed_accesses_are_reported_once_and_read_as_ones(guest: Guests) -> None:
    seen: list[str] = []
    code = b"\xe4\x66\xe4\x66\xf4"  # in $0x66, %al; in $0x66, %al; hlt
    result = guest(code, memory="1M", on_unclaimed=lambda access: seen.append(str(access)))
    assert result.registers.rax & 0xFF == 0xFF
    assert len(seen) == 1
    assert "0x66" in seen[0]


def test_unclaimed_accesses_can_be_made_an_error(guest: Guests) -> None:
    machine = guest.machine("1M", strict_io=True)
    machine.load(b"\xe4\x66\xf4")
    with pytest.raises(UnclaimedAccessError, match="0x66"):
        machine.run()
    assert machine.result(Stopped()).last_exits[-1] == IoIn(0x66, 1, 1)


def test_a_run_is_stopped_from_another_thread(guest: Guests) -> None:
    machine = guest.machine("1M")
    machine.load(SPIN)
    timer = threading.Timer(0.05, machine.stop)
    timer.start()
    assert machine.run(timeout=30).stop == Stopped()
    timer.join()


def test_a_stop_before_the_run_is_not_lost(guest: Guests) -> None:
    machine = guest.machine("1M")
    machine.load(SPIN)
    machine.stop()
    assert machine.run(timeout=30).stop == Stopped()


def test_closing_ends_a_run_on_another_thread() -> None:
    machine = Machine("1M")
    machine.load(SPIN)
    ended: list[object] = []
    runner = threading.Thread(target=lambda: ended.append(machine.run(timeout=30).stop))
    runner.start()
    while not machine.is_running:
        pass
    machine.close()
    runner.join()
    assert ended == [Stopped()]


def test_a_machine_runs_on_one_thread_at_a_time(guest: Guests) -> None:
    machine = guest.machine("1M")
    machine.load(SPIN)
    runner = threading.Thread(target=machine.run, args=(30,))
    runner.start()
    while not machine.is_running:
        pass
    with pytest.raises(InUseError, match="another thread"):
        machine.run()
    machine.stop()
    runner.join()


def test_a_device_cannot_close_the_machine_it_runs_in(guest: Guests) -> None:
    class Closer:
        name = "closer"

        def __init__(self, machine: Machine) -> None:
            self.machine = machine

        def read(self, offset: int, size: int) -> bytes:
            return bytes(size)

        def write(self, offset: int, data: bytes) -> None:
            self.machine.close()

    machine = guest.machine("1M")
    machine.pio.register(Closer(machine), 0x66, 1)
    machine.load(b"\xe6\x66\xf4")
    with pytest.raises(InUseError, match="stop"):
        machine.run()


def test_a_closed_machine_says_so() -> None:
    machine = Machine("1M")
    machine.close()
    machine.close()
    for call in (machine.run, machine.stop, lambda: machine.load(SPIN), lambda: machine.registers):
        with pytest.raises(ClosedError, match="closed"):
            call()


def test_memory_of_ones_own_survives_the_machine() -> None:
    with GuestMemory("1M") as memory:
        with Machine(memory) as machine:
            machine.load(b"\xc6\x06\x00\x90\x2a\xf4")  # movb $42, 0x9000; hlt
            with pytest.raises(InUseError):
                memory.close()
            machine.run()
        assert memory.read_u8(0x9000) == 42


def test_a_rom_cannot_be_written_by_the_guest() -> None:
    with GuestMemory("2M") as memory:
        memory.add_rom(0xF0000000, b"\xaa" * 4096, name="rom")
        with Machine(memory) as machine:
            machine.load(assemble("mov $0xf0000000, %eax; movb $1, (%rax); mov (%rax), %bl; hlt"), mode="long")
            result = machine.run()
        assert result.registers.rbx & 0xFF == 0xAA


def test_a_rom_at_the_reset_vector_is_what_runs_first() -> None:
    rom = (b"\xb0\x15\xe6\xf4\xf4" + bytes(4096)).ljust(0x10000, b"\x00")  # mov $21, %al; out %al, $0xf4; hlt
    rom = rom[:0xFFF0] + b"\xe9\x0d\x00"  # at 0xfff0: jmp 0x0000, the offset wraps within 64 KiB
    with GuestMemory("1M") as memory:
        top = memory.add_rom(0xFFFF0000, rom, name="bios")
        memory.add_alias(0x100000, top, name="bios below")
        with Machine(memory) as machine:
            machine.set_state(reset_vector(machine.vcpu.get_sregs()))
            assert machine.run().exit_code == 43


def test_a_state_that_kvm_refuses_is_explained(guest: Guests) -> None:
    machine = guest.machine("1M")
    state = real_mode(machine.vcpu.get_sregs())
    state.sregs.cr0 |= Cr0.PG.value
    with pytest.raises(ConfigurationError, match="PG is set without PE"):
        machine.set_state(state)


def test_memory_above_the_hole_is_reachable_from_long_mode(guest: Guests) -> None:
    machine = guest.machine("4G")
    assert [region.gpa for region in machine.memory.regions] == [0, 1 << 32]


@pytest.mark.parametrize("mode", [Mode.REAL, Mode.PROTECTED, Mode.LONG])
def test_every_mode_runs_code(guest: Guests, mode: Mode) -> None:
    assert guest(b"\xb0\x07\xe6\xf4\xf4", mode=mode).exit_code == 15  # mov $7, %al; out %al, $0xf4; hlt


@pytest.mark.parametrize("ring", [0, 3])
def test_long_mode_starts_in_the_ring_asked_for(guest: Guests, ring: int) -> None:
    assert guest(b"\xeb\xfe", mode="long", ring=ring, timeout=0.1).sregs.ss.dpl == ring


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "quantum"}, "quantum"),
        ({"mode": "long", "ring": 1}, "ring"),
        ({"mode": "real", "ring": 3}, "ring"),
        ({"mode": "long", "page_size": 12345}, "page"),
    ],
)
def test_states_that_do_not_exist_are_refused(guest: Guests, arguments: dict[str, object], words: str) -> None:
    machine = guest.machine()
    with pytest.raises((ConfigurationError, PagingError), match=words):
        machine.load(SPIN, **arguments)  # type: ignore[arg-type]


def test_an_image_outside_memory_is_refused(guest: Guests) -> None:
    machine = guest.machine("1M")
    with pytest.raises(ImageError, match="0x200000"):
        machine.load(SPIN, mode="long", load=0x200000)


@pytest.mark.parametrize(("load", "table"), [(0x1000, "GDT"), (0x3000, "TSS"), (0x10000, "page tables")])
def test_an_image_that_would_overwrite_the_modes_tables_is_refused(guest: Guests, load: int, table: str) -> None:
    machine = guest.machine()
    with pytest.raises(ImageError, match=f"overlaps the {table}"):
        machine.load(SPIN, mode="long", load=load)


def test_a_file_that_is_missing_is_refused(guest: Guests, tmp_path: Path) -> None:
    machine = guest.machine("1M")
    with pytest.raises(ImageError, match="nosuch"):
        machine.load(tmp_path / "nosuch.bin")


def test_pages_of_1_gib_are_refused_where_cpuid_does_not_offer_them(guest: Guests) -> None:
    machine = guest.machine()
    offered = any(leaf.function == 0x80000001 and leaf.edx >> 26 & 1 for leaf in machine.vcpu.get_cpuid2())
    if offered:
        machine.load(SPIN, mode="long", page_size=GiB)
    else:
        with pytest.raises(ConfigurationError, match="no pages of 1 GiB"):
            machine.load(SPIN, mode="long", page_size=GiB)


@pytest.mark.parametrize("memory", [0, -4096, 4097, "lots", 1 << 60])
def test_memory_that_cannot_be_is_refused(memory: int | str) -> None:
    with pytest.raises((GuestMemoryError, ConfigurationError)):
        Machine(memory)


def test_an_interrupted_run_can_be_explained(guest: Guests) -> None:
    machine = guest.machine("1M")
    machine.load(SPIN)
    machine.run(timeout=0.1)
    result = machine.result(Interrupted())
    assert result.status == 130
    assert "rip" in result.report


def test_sequential_machines_leave_nothing_behind() -> None:
    def descriptors_and_mappings() -> tuple[int, int]:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir())), len(Path("/proc/self/maps").read_text().splitlines())

    def cycle() -> None:
        with Machine("1M") as machine:
            machine.load(PRINT_A)
            machine.run()

    cycle()
    before = descriptors_and_mappings()
    for _ in range(50):
        cycle()
    after = descriptors_and_mappings()
    assert after[0] == before[0]
    assert after[1] <= before[1] + 2  # the allocator may map an arena of its own


def test_observers_come_and_go_between_runs(guest: Guests) -> None:
    log = LastExits()
    machine = guest.machine("1M")
    machine.load(STORM_OF_HALTS)
    machine.run()
    machine.add_observer(log)
    machine.run()
    machine.remove_observer(log)
    machine.remove_observer(log)
    machine.run()
    assert [type(exit) for exit in log.exits()] == [IoOut, Hlt]


class Joiner:
    """Wants one more observer in the middle of a run."""

    machine: Machine

    def exit(self, vcpu: int, exit: Exit) -> None:
        self.machine.add_observer(LastExits())

    def tick(self) -> None:
        pass


def test_nobody_begins_to_watch_in_the_middle_of_a_run(guest: Guests) -> None:
    joiner = Joiner()
    joiner.machine = guest.machine("1M", observers=[joiner])
    joiner.machine.load(b"\xf4")
    with pytest.raises(InUseError, match="stop"):
        joiner.machine.run()


class Insider:
    """Wants to know which machine it watches, and how its runs end."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def exit(self, vcpu: int, exit: Exit) -> None:
        pass

    def tick(self) -> None:
        pass

    def attach(self, machine: Machine) -> None:
        self.told.append(machine)

    def detach(self) -> None:
        self.told.append(None)

    def stopped(self, stop: Stop) -> None:
        self.told.append(stop)


def test_an_observer_may_hear_which_machine_it_watches_and_how_runs_end(guest: Guests) -> None:
    first, later = Insider(), Insider()
    machine = guest.machine("1M", observers=[first])
    machine.load(b"\xf4")
    machine.run()
    machine.add_observer(later)
    machine.remove_observer(later)
    machine.remove_observer(later)
    assert first.told == [machine, Halted()]
    assert later.told == [machine, None]
