r"""``VmInterrupts``: the ioctls for interrupt controllers and timers inside the kernel, as ``Vm`` has them.

    a device                     the kernel                                       a vCPU

    irq_line(gsi) --.            .--> PIC (8259A pair) ----------.
                     >-- routes -+--> I/O APIC ---- messages --.  \\
    irqfd: write --'             '--> MSI ----------------------+--> local APIC --> interrupt
    signal_msi() -----------------------------------------------'

KVM_CREATE_IRQCHIP makes all three controllers; the split irqchip (KVM_CAP_SPLIT_IRQCHIP by ``enable_cap``, with the
number of I/O APIC pins) only the local APICs. ``irq_line`` and ``signal_msi`` may be called from any thread while vCPUs
run; who closes the VM first stops those that call them, because the number of a closed descriptor is soon another's.

See: Documentation/virt/kvm/api.rst, section 4, under the ioctls' names. Leaves out: the local APIC, which is part of a
vCPU's state (``pykvm.kvm.state``).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from pykvm._shim import ffi, lib
from pykvm.errors import ConfigurationError
from pykvm.kvm.batch import Batch, Step
from pykvm.kvm.constants import ClockFlag, IrqchipId
from pykvm.kvm.descriptor import Descriptor, check_error, fill_state, kernel_values
from pykvm.kvm.routing import Route, routing_table, split_address
from pykvm.kvm.saved import SavedVm
from pykvm.kvm.structs import ClockData, from_c, to_c

__all__ = ["VmInterrupts"]

_GSI_LIMIT = 1 << 32
_NO_IRQCHIP = "this VM has no interrupt controller in the kernel: call create_irqchip() first, before create_vcpu()"
_NO_PIT = "this VM has no timer in the kernel: call create_pit2() first"
_ROUTING_ERRORS = {
    errno.EINVAL: "no interrupt controller in the kernel (create_irqchip), a pin that it does not have, a GSI twice to "
    "the same controller, or one beyond the last"
}
_MSI_ERRORS = {errno.EINVAL: _NO_IRQCHIP, errno.EPERM: "no local APIC of this VM is meant by that address"}
_IRQFD_ERRORS = {
    errno.EBUSY: "that eventfd is bound to an interrupt line of this VM already",
    errno.EBADF: "there is no such file descriptor",
    errno.EINVAL: "fd or resamplefd is no eventfd, the gsi is beyond the last, or there is no interrupt controller in "
    "the kernel (create_irqchip; a resamplefd needs the full one)",
}


class VmInterrupts(Descriptor):
    """What a virtual machine's kernel side does about interrupts and time."""

    # ---- controllers ----

    def create_irqchip(self) -> None:
        """Put a PIC pair, an I/O APIC and a local APIC per vCPU into the kernel: KVM_CREATE_IRQCHIP.

        Before the first vCPU. From then on HLT waits inside the kernel, KVM_INTERRUPT is refused, and every vCPU but
        the first waits for INIT and SIPI. Closing such a VM takes milliseconds.

        Raises: KvmError (EEXIST: it has one already; EINVAL: there is a vCPU already).
        """
        why = {
            errno.EEXIST: "this VM has interrupt controllers in the kernel already",
            errno.EINVAL: "only before the first vCPU is created",
        }
        self._ioctl("KVM_CREATE_IRQCHIP", explanation=why)

    def get_irqchip(self, chip_id: IrqchipId) -> bytes:
        """Return KVM_GET_IRQCHIP: the state of a PIC or the I/O APIC, 512 bytes, as <asm/kvm.h> lays it out."""
        c = ffi.new("struct kvm_irqchip *")
        with kernel_values("KVM_GET_IRQCHIP"):
            c.chip_id = chip_id
        self._ioctl_struct("KVM_GET_IRQCHIP", c, f"chip_id={chip_id!r}", _why_no_chip(chip_id))
        return bytes(ffi.buffer(ffi.addressof(c, "chip")))

    def set_irqchip(self, chip_id: IrqchipId, state: bytes) -> None:
        """KVM_SET_IRQCHIP. Raises: ConfigurationError if ``state`` is not as long as ``get_irqchip()`` returns."""
        c = ffi.new("struct kvm_irqchip *")
        with kernel_values("KVM_SET_IRQCHIP"):
            c.chip_id = chip_id
        fill_state(ffi.addressof(c, "chip"), state, "an interrupt controller's state")
        self._ioctl_struct("KVM_SET_IRQCHIP", c, f"chip_id={chip_id!r}", _why_no_chip(chip_id))

    def set_boot_cpu_id(self, id: int) -> None:
        """Say which vCPU runs first, the bootstrap processor: KVM_SET_BOOT_CPU_ID. It is 0 unless told.

        Raises: KvmError (EBUSY: there is a vCPU already).
        """
        self._ioctl("KVM_SET_BOOT_CPU_ID", id, f"id={id}", "only before the first vCPU is created")

    # ---- lines and messages ----

    def irq_line(self, gsi: int, level: bool) -> None:
        """Raise (True) or lower the interrupt line ``gsi``: KVM_IRQ_LINE. From any thread.

        An edge-triggered input, as the PIC's are at reset, sees the change from low to high: raise, then lower. The
        kernel ignores a ``gsi`` without a route.

        Raises: KvmError (ENXIO: no interrupt controller in the kernel).
        """
        # This is the way of every interrupt: what only an error needs is made only for an error.
        if self._closed or not 0 <= gsi < _GSI_LIMIT:
            self._check_open()
            raise ConfigurationError(f"KVM_IRQ_LINE: a gsi that fits into the kernel's structure has 32 bits: {gsi:#x}")
        line = ffi.new("struct kvm_irq_level *", (gsi, level))
        result = self.calls.pykvm_ioctl_pointer(self._fd, lib.KVM_IRQ_LINE, line)
        if result < 0:
            check_error(result, "KVM_IRQ_LINE", f"gsi={gsi}, level={level}", {errno.ENXIO: _NO_IRQCHIP})

    def set_gsi_routing(self, entries: Sequence[Route]) -> None:
        """Replace the whole table of where interrupt lines lead: KVM_SET_GSI_ROUTING.

        Raises: KvmError (EINVAL: no interrupt controller in the kernel, a pin that does not exist, the same GSI twice
        to one controller, or a GSI of 4096 and more).
        """
        with kernel_values("KVM_SET_GSI_ROUTING"):
            table = routing_table(entries)
        self._ioctl_struct("KVM_SET_GSI_ROUTING", table, f"entries={list(entries)}", _ROUTING_ERRORS)

    def signal_msi(self, address: int, data: int) -> int:
        """Send a message-signalled interrupt to a local APIC: KVM_SIGNAL_MSI. From any thread.

        ``address`` says to whom (0xfee00000 | APIC id << 12), ``data`` which vector and how (SDM volume 3, section
        11.11). Returns a number above 0 if it was delivered, and 0 if the APIC is switched off or there is none of that
        id.

        Raises: KvmError (EINVAL: no local APIC in the kernel; EPERM: no local APIC is there yet).
        """
        with kernel_values("KVM_SIGNAL_MSI"):
            high, low = split_address(address)
            msi = ffi.new("struct kvm_msi *", {"address_hi": high, "address_lo": low, "data": data})
        return self._ioctl_struct("KVM_SIGNAL_MSI", msi, f"address={address:#x}, data={data:#x}", _MSI_ERRORS)

    def irqfd(self, fd: int, gsi: int, *, resamplefd: int | None = None, deassign: bool = False) -> None:
        """Make a write to the eventfd ``fd`` an interrupt on ``gsi``, without a system call of ours: KVM_IRQFD.

        Without ``resamplefd`` a write is an edge. With it the line stays up until the guest ends the interrupt (EOI);
        then the kernel lowers it and signals ``resamplefd``: who still wants the line up writes to ``fd`` again. That
        needs the full irqchip. ``deassign`` ends what the same ``fd`` and ``gsi`` began. The kernel holds the eventfd
        by itself: ``fd`` may be closed.

        Raises: KvmError, with what the kernel minds.
        """
        flags = (lib.KVM_IRQFD_FLAG_DEASSIGN if deassign else 0) | (
            lib.KVM_IRQFD_FLAG_RESAMPLE if resamplefd is not None else 0
        )
        with kernel_values("KVM_IRQFD"):
            values = {"fd": fd, "gsi": gsi, "flags": flags, "resamplefd": resamplefd or 0}
            c = ffi.new("struct kvm_irqfd *", values)
        arguments = f"fd={fd}, gsi={gsi}, resamplefd={resamplefd}, deassign={deassign}"
        self._ioctl_struct("KVM_IRQFD", c, arguments, _IRQFD_ERRORS)

    # ---- time ----

    def create_pit2(self, *, speaker_dummy: bool = False) -> None:
        """Put an 8254 timer into the kernel, on GSI 0: KVM_CREATE_PIT2. After ``create_irqchip()``.

        ``speaker_dummy`` makes the kernel answer port 0x61 too.

        Raises: KvmError (EEXIST: it has one already; ENOENT: no interrupt controller in the kernel).
        """
        flags = lib.KVM_PIT_SPEAKER_DUMMY if speaker_dummy else 0
        c = ffi.new("struct kvm_pit_config *", {"flags": flags})
        why = {errno.EEXIST: "this VM has a timer in the kernel already", errno.ENOENT: _NO_IRQCHIP}
        self._ioctl_struct("KVM_CREATE_PIT2", c, f"speaker_dummy={speaker_dummy}", why)

    def get_pit2(self) -> bytes:
        """Return KVM_GET_PIT2: the timer's state, ``struct kvm_pit_state2``. Raises: KvmError (ENXIO: no timer)."""
        c = ffi.new("struct kvm_pit_state2 *")
        self._ioctl_struct("KVM_GET_PIT2", c, "", {errno.ENXIO: _NO_PIT})
        return bytes(ffi.buffer(c))

    def set_pit2(self, state: bytes) -> None:
        """KVM_SET_PIT2. Raises: ConfigurationError if ``state`` is not as long as ``get_pit2()`` returns."""
        c = ffi.new("struct kvm_pit_state2 *")
        fill_state(c, state, "the timer's state")
        self._ioctl_struct("KVM_SET_PIT2", c, "", {errno.ENXIO: _NO_PIT})

    def get_clock(self) -> ClockData:
        """Return KVM_GET_CLOCK: the time that kvmclock tells the guest."""
        c = ffi.new("struct kvm_clock_data *")
        self._ioctl_struct("KVM_GET_CLOCK", c)
        return from_c(ClockData, c)

    def set_clock(self, data: ClockData) -> None:
        """KVM_SET_CLOCK. With the flag REALTIME the time since ``data.realtime`` is added; other flags mean nothing."""
        c = ffi.new("struct kvm_clock_data *")
        with kernel_values("KVM_SET_CLOCK"):
            to_c(data, c)
            c.flags &= ClockFlag.REALTIME.value  # the kernel refuses those that only KVM_GET_CLOCK sets
        self._ioctl_struct("KVM_SET_CLOCK", c, f"{data}")

    # ---- everything at once ----

    def save_state(self) -> SavedVm:
        """Return the kernel's interrupt controllers, its 8254, and its clock, as far as there are any.

        Levels of lines (``irq_line``) are not part of it, for the kernel does not tell them. Raises: KvmError.
        """
        self._check_open()
        return SavedVm.save(self.calls, self._fd)

    def load_state(self, saved: SavedVm) -> None:
        """Put back what ``save_state`` returned, of this VM or of one made alike. Raises: KvmError."""
        Batch(self.load_steps(saved), self.calls).issue()

    def load_steps(self, saved: SavedVm) -> list[Step]:
        """Return the ioctls of ``load_state``, for who issues them often."""
        self._check_open()
        return saved.steps(self._fd)


def _why_no_chip(chip_id: int) -> dict[int, str]:
    known = ", ".join(f"{chip.value} ({chip.name})" for chip in IrqchipId)
    return {errno.ENXIO: _NO_IRQCHIP, errno.EINVAL: f"{chip_id} is none of the interrupt controllers: {known}"}
