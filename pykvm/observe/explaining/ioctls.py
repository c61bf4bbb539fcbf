"""KVM's ioctls: what each is for, on which descriptor, with which argument, and what its errors mean.

See: Documentation/virt/kvm/api.rst, section "API description". Leaves out ioctls that pykvm never makes.
"""

from __future__ import annotations

from collections.abc import Sequence

from pykvm.observe.explaining.explanation import Explanation
from pykvm.observe.explaining.lookup import find_name, one
from pykvm.observe.explaining.vcpuioctls import VCPU_IOCTLS
from pykvm.observe.explaining.vmioctls import SYSTEM_AND_VM_IOCTLS, Ioctl

__all__ = ["IOCTLS", "PREFIX", "explain", "find_ioctl", "names"]

PREFIX = "KVM_"
IOCTLS: dict[str, Ioctl] = SYSTEM_AND_VM_IOCTLS | VCPU_IOCTLS


def explain(words: Sequence[str]) -> Explanation:
    """Return what the ioctl is that ``words`` name: "KVM_SET_SREGS" or "set_sregs". Raises: ConfigurationError."""
    name = find_ioctl(one(words, "one ioctl, as KVM_SET_SREGS"))
    ioctl = IOCTLS[name]
    errors = tuple(
        f"{errno}: {why or 'the argument points to memory that is not there'}." for errno, why in ioctl.errors.items()
    )
    needs = f" It needs {ioctl.capability}." if ioctl.capability else ""
    return Explanation(
        f"ioctl {name}",
        f"{ioctl.what}{needs}",
        f"On {ioctl.on}. Argument: {ioctl.argument}.",
        (ioctl.advice,),
        (f"Documentation/virt/kvm/api.rst, {name}", "pykvm explain errno: what the other errors are"),
        fails=errors,
    )


def find_ioctl(word: str) -> str:
    """Return the name of the ioctl that ``word`` means. Raises: ConfigurationError."""
    return find_name(word, IOCTLS, "ioctl", (PREFIX,))


def names() -> list[str]:
    """Return the names that ``explain`` knows."""
    return list(IOCTLS)
