"""``Vcpu``: the descriptor of one virtual processor: KVM_RUN, and what a guest's exit asks for.

A vCPU belongs to one thread at a time. ``kick()`` alone may be called from anywhere, to get it out of the guest. After
an exit that the guest waits on (IN, an MMIO read, RDMSR, a hypercall) the answer goes in by ``complete()``; running on
without one is an error, not a zero.

See: Documentation/virt/kvm/api.rst, KVM_RUN and section 5. Leaves out: registers and other state, which
``pykvm.kvm.state`` has.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from pykvm._shim import ffi, lib
from pykvm.errors import ConfigurationError, InUseError, KvmError, UnansweredReadError
from pykvm.kvm.batch import Batch, Step
from pykvm.kvm.calls import Calls
from pykvm.kvm.constants import Cap, ExitReason
from pykvm.kvm.descriptor import Explanation, check_error
from pykvm.kvm.exits import Exit, Hypercall, Intr, IoIn, IoOut, MmioRead, MmioWrite, Rdmsr, ReadExit, Wrmsr, decode
from pykvm.kvm.saved import SHOWN, SavedVcpu, find_msrs
from pykvm.kvm.state import VcpuState
from pykvm.kvm.stats import StatsSource
from pykvm.kvm.whereabouts import SyncedRegisters, Whereabouts

if TYPE_CHECKING:
    from pykvm._shim import CData
    from pykvm.kvm.vm import Vm

__all__ = ["Vcpu"]

# After these exits the kernel has still to finish the instruction: it does so at the next KVM_RUN.
_INCOMPLETE = (IoIn, IoOut, MmioRead, MmioWrite, Rdmsr, Wrmsr, Hypercall)
_READS = (IoIn, MmioRead, Rdmsr, Hypercall)
_MSR_ACCESSES = (Rdmsr, Wrmsr)

_MOST_PARTS = 64  # of one instruction without REP: no operand is so large

_LONGEST_TICK = 1 << 33  # seconds: what 64 bits of nanoseconds hold


class Vcpu(VcpuState, StatsSource):
    """A virtual processor. Created by ``Vm.create_vcpu``."""

    def __init__(self, vm: Vm, c: CData, id: int, calls: Calls = lib) -> None:
        super().__init__(c.fd, f"vCPU {id}", calls)
        self.id = id
        self._vm = vm  # a VM lives as long as its vCPUs, and its memory with it
        self._c = c
        self._run = c.run
        self._kvm_run = calls.pykvm_run
        # SAFETY: a view of the run_size bytes that the shim mapped; close() drops it before they are unmapped, and
        # decode() copies what it returns.
        self._page = memoryview(ffi.buffer(c.run, c.run_size))
        self._mmio_data = ffi.offsetof("struct kvm_run", "mmio", "data")
        self._running = False
        self._mapping = threading.RLock()  # held by kick(), from any thread, lest close() unmaps what it writes to
        self._incomplete = False
        self._unanswered: ReadExit | None = None
        self._refusable: Rdmsr | Wrmsr | None = None
        self._synced: SyncedRegisters | None = None

    # ---- running ----

    def run(self) -> Exit:
        """Run the guest until the next exit: KVM_RUN. Returns ``Intr`` when a signal, a tick or a kick came in between.

        Raises: UnansweredReadError if the last exit still wants an answer; InUseError if another thread runs this
        vCPU; KvmError.
        """
        if self._unanswered is not None:
            raise UnansweredReadError(f"{self._unanswered} was not answered: call complete(exit, data) before run()")
        return self._take_exit(self._enter(self._kvm_run))

    def complete(self, exit: ReadExit, data: bytes) -> None:
        """Answer ``exit``, the one ``run()`` returned last, with what the guest is to read.

        ``data`` is little-endian: ``size * count`` bytes for IoIn, ``size`` for MmioRead, 8 for Rdmsr and Hypercall. It
        reaches the guest at the next KVM_RUN.

        Raises: UnansweredReadError if ``exit`` is not waiting for an answer, or ``data`` has the wrong length.
        """
        self._check_usable("answered")
        if self._unanswered is None or exit != self._unanswered:
            raise UnansweredReadError(
                f"{exit} is not waiting for an answer: it is not the last exit, or has one already"
            )
        wanted = _answer_size(exit)
        if len(data) != wanted:
            raise UnansweredReadError(f"{exit} wants {wanted} bytes, not {len(data)}")
        match exit:
            case IoIn():
                start = self._run.io.data_offset
                self._page[start : start + wanted] = data
            case MmioRead():
                self._page[self._mmio_data : self._mmio_data + wanted] = data
            case Rdmsr():
                self._run.msr.data = int.from_bytes(data, "little")
            case Hypercall():
                self._run.hypercall.ret = int.from_bytes(data, "little")
        self._unanswered = self._refusable = None

    def refuse(self, exit: Rdmsr | Wrmsr) -> None:
        """Refuse the MSR access that ``run()`` returned last: the guest takes #GP.

        Raises: UnansweredReadError if ``exit`` is not the last exit.
        """
        self._check_usable("answered")
        if self._refusable is None or exit != self._refusable:
            raise UnansweredReadError(
                f"{exit} is not waiting for an answer: it is not the last exit, or has one already"
            )
        self._run.msr.error = 1
        self._unanswered = self._refusable = None

    def complete_pending(self) -> Exit | None:
        """Let the kernel finish the instruction of the last exit without running the guest any further.

        RIP and the registers are stale at an IN or an MMIO read until this has returned None. It returns another exit
        when the same instruction needs one (``rep insb`` in parts, an access across a border): handle it, call again.

        Raises: UnansweredReadError if the last exit still wants an answer; KvmError.
        """
        if self._unanswered is not None:
            raise UnansweredReadError(f"{self._unanswered} was not answered: call complete(exit, data) first")
        self._check_open()
        if not self._incomplete:
            return None
        result = self._enter(self.calls.pykvm_complete)
        exit = self._take_exit(result)
        return None if result == -errno.EINTR else exit

    def abandon(self) -> None:
        """Have done with the instruction of the last exit, whatever it still wants: all registers are to be set anew.

        Else the kernel would finish it later, and RIP with it.

        Raises: KvmError; InUseError if another thread runs this vCPU; ClosedError.
        """
        self._check_usable("loaded")
        if not self._incomplete:
            return
        for _ in range(_MOST_PARTS):
            if self._unanswered is not None:
                self.complete(self._unanswered, bytes(_answer_size(self._unanswered)))
            if self.complete_pending() is None:
                return
            regs = self.get_regs()
            regs.rcx = 0  # the end of REP
            self.set_regs(regs)

    def kick(self) -> None:
        """Make the ``run()`` under way, or else the next one, return ``Intr``. From any thread; no kick is lost."""
        with self._mapping:
            self._check_open()
            check_error(lib.pykvm_kick(self._c), "tgkill", f"vcpu={self.id}")

    def start_ticks(self, first: float, interval: float) -> None:
        """Kick this vCPU ``first`` seconds from now and every ``interval`` seconds, while this thread runs it.

        Raises: KvmError (EBUSY: this vCPU has ticks already); ConfigurationError if a time is not above 0.
        """
        self._check_usable("given ticks")
        times = [_nanoseconds(seconds) for seconds in (first, interval)]
        result = lib.pykvm_start_ticks(self._c, *times)
        why = "this vCPU has ticks already: call stop_ticks()" if result == -errno.EBUSY else ""
        check_error(result, "timer_create", f"vcpu={self.id}", why)

    def stop_ticks(self) -> None:
        """End ``start_ticks``; does nothing if there are none."""
        self._check_open()
        check_error(lib.pykvm_stop_ticks(self._c), "timer_delete", f"vcpu={self.id}")

    def check_idle(self, purpose: str = "used") -> None:
        """Raise InUseError if a thread is inside ``run()``; ``purpose`` completes "cannot be ..."."""
        if self._running:
            raise InUseError(
                f"{self.label} cannot be {purpose} while a thread is inside KVM_RUN: "
                "kick() it and wait for run() to return"
            )

    def close(self) -> None:
        """Unmap ``struct kvm_run`` and close the descriptor; does nothing the second time.

        Raises: InUseError if a thread is inside ``run()``.
        """
        with self._mapping:
            if self._closed:
                return
            # Claim first, look second: run() does it the other way round, so that one of the two sees the other.
            self._closed = True
            if self._running:
                self._closed = False
                self.check_idle("closed")
            self._page.release()
            self._synced = None
            self._run = ffi.NULL
            self.calls.pykvm_close_vcpu(self._c)

    # ---- everything at once ----

    @property
    def is_settled(self) -> bool:
        """Return whether the last exit's instruction is finished, so that the registers tell the truth."""
        return not self._incomplete

    def find_msrs(self, indices: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return those MSRs of ``indices`` that can be read and written back here, and those that cannot."""
        self._check_usable("asked for its MSRs")
        return find_msrs(self.calls, self._fd, indices)

    def save_state(self, msrs: Sequence[int]) -> SavedVcpu:
        """Return all that this vCPU remembers, with the MSRs ``msrs``, for ``load_state`` of it or another.

        Raises: KvmError; InUseError if the last exit's instruction is not finished: see ``complete_pending``.
        """
        self._check_usable("saved")
        if self._incomplete:
            raise InUseError(f"{self.label} is in the middle of an instruction: complete_pending() first")
        return SavedVcpu.save(self.calls, self._fd, msrs, bytes(self._page[SHOWN]))

    def save_state_again(self, before: SavedVcpu, names: Collection[str]) -> SavedVcpu:
        """Return what ``save_state`` would, if since ``before`` only the pieces ``names`` can have changed.

        Names are as in ``SavedVcpu.pieces``. What did not change is shared with ``before``. Raises: as ``save_state``.
        """
        self._check_usable("saved")
        if self._incomplete:
            raise InUseError(f"{self.label} is in the middle of an instruction: complete_pending() first")
        return SavedVcpu.save_again(self.calls, self._fd, before, names, bytes(self._page[SHOWN]))

    def load_state(self, saved: SavedVcpu) -> None:
        """Make this vCPU what ``saved`` was made of; ``abandon()`` first if an instruction is not finished.

        Raises: KvmError that names the ioctl or the MSR that was refused; InUseError as for ``save_state``.
        """
        self._check_usable("loaded")
        if self._incomplete:
            raise InUseError(f"{self.label} is in the middle of an instruction: abandon() it first")
        Batch(self.load_steps(saved), self.calls).issue()
        self.show(saved)

    def load_steps(self, saved: SavedVcpu) -> list[Step]:
        """Return the ioctls of ``load_state``, for who issues them often; ``abandon()`` before and ``show()`` after."""
        self._check_open()
        return saved.steps(self._fd)

    def show(self, saved: SavedVcpu) -> None:
        """Let ``struct kvm_run`` say of this vCPU what ``saved`` says."""
        self._check_open()
        self._page[SHOWN] = saved.shown

    # ---- what struct kvm_run says and takes beside the exit ----

    @property
    def request_interrupt_window(self) -> bool:
        """Whether to exit with IrqWindowOpen as soon as the guest can take an interrupt."""
        self._check_open()
        return bool(self._run.request_interrupt_window)

    @request_interrupt_window.setter
    def request_interrupt_window(self, wanted: bool) -> None:
        self._check_open()
        self._run.request_interrupt_window = int(wanted)

    @property
    def ready_for_interrupt_injection(self) -> bool:
        """Whether KVM_INTERRUPT would be taken at once, as of the last exit."""
        self._check_open()
        return bool(self._run.ready_for_interrupt_injection)

    @property
    def if_flag(self) -> bool:
        """RFLAGS.IF as of the last exit."""
        self._check_open()
        return bool(self._run.if_flag)

    @property
    def cr8(self) -> int:
        """The task priority, CR8, as of the last exit."""
        self._check_open()
        return int(self._run.cr8)

    @property
    def apic_base(self) -> int:
        """The MSR IA32_APIC_BASE, as of the last exit."""
        self._check_open()
        return int(self._run.apic_base)

    def sync_registers(self, wanted: bool) -> None:
        """Have every exit from now on bring along what ``whereabouts()`` returns, or none any more.

        Does nothing where KVM cannot (KVM_CAP_SYNC_REGS): ``whereabouts()`` asks by ioctls then.
        """
        self._check_usable("told what to bring along")
        if self._synced is not None:
            self._synced.stop()
        can = wanted and self._vm.check_extension(Cap.SYNC_REGS)
        self._synced = SyncedRegisters(self._run) if can else None

    def whereabouts(self) -> Whereabouts:
        """Return where the guest was at the last exit, and what decides on the bytes there; RIP as of ``get_regs``.

        Raises: KvmError; ClosedError; InUseError if a thread is inside ``run()``.
        """
        self._check_usable("asked where it is")
        if self._synced is not None:
            return self._synced.whereabouts()
        rip, s = self.get_regs().rip, self.get_sregs()
        return Whereabouts(rip, s.cs.base, s.cs.l, s.cs.db, s.ss.dpl, s.cr0, s.cr3, s.cr4, s.efer)

    # ---- inside ----

    def _enter(self, shim_function: Callable[[CData], int]) -> int:
        if self._running:
            self.check_idle("run")
        self._running = True
        try:
            self._check_open()
            return shim_function(self._c)
        finally:
            self._running = False

    def _take_exit(self, result: int) -> Exit:
        if result == -errno.EINTR:  # whatever was pending is finished
            self._incomplete = False
            self._refusable = None
            return Intr()
        if result < 0 and not self._is_memory_fault(result):
            raise KvmError("KVM_RUN", -result, f"vcpu={self.id}")
        exit = decode(self._run, self._page)
        self._incomplete = isinstance(exit, _INCOMPLETE)
        self._unanswered = exit if isinstance(exit, _READS) else None
        self._refusable = exit if isinstance(exit, _MSR_ACCESSES) else None
        return exit

    def _is_memory_fault(self, result: int) -> bool:
        # The one exit that comes with an error: api.rst, KVM_EXIT_MEMORY_FAULT.
        return result in (-errno.EFAULT, -lib.EHWPOISON) and self._run.exit_reason == ExitReason.MEMORY_FAULT

    def _check_usable(self, purpose: str) -> None:
        # KVM_GET_REGS and its like would wait inside the kernel for KVM_RUN to return, perhaps for ever.
        self._check_open()
        self.check_idle(purpose)

    def _ioctl(self, name: str, argument: int = 0, arguments: str = "", explanation: Explanation = "") -> int:
        self._check_usable(f"given {name}")
        return super()._ioctl(name, argument, arguments, explanation)

    def _ioctl_struct(self, name: str, pointer: CData, arguments: str = "", explanation: Explanation = "") -> int:
        self._check_usable(f"given {name}")
        return super()._ioctl_struct(name, pointer, arguments, explanation)


def _answer_size(exit: ReadExit) -> int:
    match exit:
        case IoIn(size=size, count=count):
            return size * count
        case MmioRead(size=size):
            return size
        case Rdmsr() | Hypercall():
            return 8


def _nanoseconds(seconds: float) -> int:
    if not 0 < seconds < _LONGEST_TICK:
        raise ConfigurationError(f"a time between ticks is above 0 and below {_LONGEST_TICK} seconds, not {seconds}")
    return max(1, int(seconds * 1e9))
