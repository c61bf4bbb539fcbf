"""What each ``KVM_CAP_*`` is good for, beyond what the doctor's table says.

See: Documentation/virt/kvm/api.rst, the "Capability:" line of each ioctl, and sections 6 to 8. Leaves out capabilities
that pykvm has no use for.
"""

from __future__ import annotations

from collections.abc import Sequence

from pykvm.kvm.capabilities import CAPABILITIES
from pykvm.kvm.constants import Cap
from pykvm.observe.explaining.explanation import Explanation
from pykvm.observe.explaining.ioctls import IOCTLS
from pykvm.observe.explaining.lookup import find_name, looks_like_number, one, parse_number

__all__ = ["OTHERS", "PREFIX", "explain", "names"]

PREFIX = "KVM_CAP_"

# Those that are not in the doctor's table.
OTHERS: dict[Cap, str] = {
    Cap.HLT: "HLT of a guest is an exit, or waits inside the kernel; every KVM has it",
    Cap.USER_NMI: "KVM_NMI: a non-maskable interrupt from user space",
    Cap.IRQ_ROUTING: "KVM_SET_GSI_ROUTING: what an interrupt line means; the figure is how many entries there can be",
    Cap.ADJUST_CLOCK: "KVM_GET_CLOCK and KVM_SET_CLOCK; the figure is the flags they know",
    Cap.X86_ROBUST_SINGLESTEP: "a single step is one even over instructions that change RFLAGS.TF",
    Cap.GET_TSC_KHZ: "KVM_GET_TSC_KHZ: how fast the guest's time-stamp counter is",
    Cap.SIGNAL_MSI: "KVM_SIGNAL_MSI: an interrupt as a message",
    Cap.ENABLE_CAP_VM: "KVM_ENABLE_CAP works on VMs",
    Cap.CHECK_EXTENSION_VM: "KVM_CHECK_EXTENSION works on VMs, whose answers may differ from /dev/kvm's",
    Cap.EXCEPTION_PAYLOAD: "an exception's CR2 or DR6 can be saved before the guest has taken it",
    Cap.X86_BUS_LOCK_EXIT: "a guest that locks the whole bus can be caught: KVM_EXIT_X86_BUS_LOCK",
    Cap.SREGS2: "KVM_GET_SREGS2 and KVM_SET_SREGS2: with the PDPTEs of PAE paging",
    Cap.EXIT_ON_EMULATION_FAILURE: "an instruction that KVM cannot emulate is always an exit, in ring 3 too",
    Cap.EXIT_HYPERCALL: "chosen hypercalls come to user space: KVM_EXIT_HYPERCALL",
    Cap.X86_TRIPLE_FAULT_EVENT: "a triple fault that waits can be saved and restored",
    Cap.X86_NOTIFY_VMEXIT: "a guest that keeps the CPU from all events can be stopped: KVM_EXIT_NOTIFY",
}


def explain(words: Sequence[str]) -> Explanation:
    """Return what the capability is that ``words`` name: "KVM_CAP_IRQCHIP", "irqchip" or its number.

    Raises: ConfigurationError.
    """
    word = one(words, "one capability, as KVM_CAP_IRQCHIP")
    if looks_like_number(word):
        number = parse_number(word, 32, "a capability's number")
        if number not in [cap.value for cap in Cap]:
            return Explanation(
                f"cap {number}: none that pykvm knows",
                "KVM has more than 200 of them, for all architectures.",
                advice=("Look for the number among the KVM_CAP_* of <linux/kvm.h>.",),
                see=("Documentation/virt/kvm/api.rst",),
                known=False,
            )
        return _capability(Cap(number))
    return _capability(Cap[find_name(word, names(), "capability", (PREFIX,)).removeprefix(PREFIX)])


def names() -> list[str]:
    """Return the names that ``explain`` knows."""
    return [PREFIX + cap.name for cap in Cap]


def _capability(cap: Cap) -> Explanation:
    name = PREFIX + cap.name
    users = [ioctl for ioctl, entry in IOCTLS.items() if entry.capability == name]
    shown = next((row for row in CAPABILITIES if row.cap is cap), None)
    what = OTHERS[cap] if shown is None else shown.purpose
    advice = "'pykvm doctor' shows whether this host has it." if shown else ""
    return Explanation(
        f"cap {cap.value}: {name}",
        f"What it gives: {what}.",
        f"Ioctls that need it: {', '.join(users)}." if users else "",
        (advice, "Ask with KVM_CHECK_EXTENSION: 0 is no, and anything above is yes, or a figure."),
        (f"Documentation/virt/kvm/api.rst, {name}",),
    )
