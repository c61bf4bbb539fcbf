"""Where a vCPU is: what its next instruction depends on, as it comes with the exit, without an ioctl.

With KVM_CAP_SYNC_REGS the kernel puts the registers into ``struct kvm_run`` whenever KVM_RUN returns, which costs next
to nothing, while each KVM_GET_REGS has to load the vCPU first. See: Documentation/virt/kvm/api.rst, KVM_CAP_SYNC_REGS.
Leaves out setting registers that way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pykvm._shim import ffi, lib

if TYPE_CHECKING:
    from pykvm._shim import CData

__all__ = ["SyncedRegisters", "Whereabouts"]


class Whereabouts(NamedTuple):
    """RIP, and all that says which bytes are there and what they mean. A tuple, for one is made at every exit.

    Virtual-8086 mode is not in it, for it changes neither: its code is 16 bits wide, and CS says where it is.
    """

    rip: int
    cs_base: int
    cs_l: int
    cs_db: int
    ss_dpl: int
    cr0: int
    cr3: int
    cr4: int
    efer: int


class SyncedRegisters:
    """The registers in ``run``, a ``struct kvm_run *`` that outlives this; they are true from the next exit on."""

    def __init__(self, run: CData) -> None:
        # SAFETY: the union s of run's mapping holds a struct kvm_sync_regs on x86 (Linux, asm/kvm.h), and is at least
        # as large. The pointers are used only while the mapping is there: Vcpu.close() drops this object.
        synced = ffi.cast("struct kvm_sync_regs *", ffi.addressof(run, "s"))
        self._regs = ffi.addressof(synced, "regs")
        self._sregs = ffi.addressof(synced, "sregs")
        self._cs = ffi.addressof(self._sregs, "cs")
        self._ss = ffi.addressof(self._sregs, "ss")
        self._run = run
        run.kvm_valid_regs = lib.KVM_SYNC_X86_REGS | lib.KVM_SYNC_X86_SREGS

    def whereabouts(self) -> Whereabouts:
        """Return what the last exit brought."""
        regs, sregs, cs = self._regs, self._sregs, self._cs
        return Whereabouts(regs.rip, cs.base, cs.l, cs.db, self._ss.dpl, sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer)

    def stop(self) -> None:
        """Have exits bring no registers any more."""
        self._run.kvm_valid_regs = 0
