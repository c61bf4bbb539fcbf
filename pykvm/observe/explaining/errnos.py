"""What an errno means when KVM gives it: for all ioctls, and for one of them.

See: Documentation/virt/kvm/api.rst, section "API description" ("General error numbers"), errno(3). Leaves out errnos
that no ioctl of KVM gives.
"""

from __future__ import annotations

import errno as errno_module
import os
from collections.abc import Sequence

from pykvm.observe.explaining.explanation import Explanation
from pykvm.observe.explaining.ioctls import IOCTLS, find_ioctl
from pykvm.observe.explaining.lookup import find_name, looks_like_number, one_or_two, parse_number, unknown

__all__ = ["ERRNOS", "explain", "names"]

EHWPOISON = 133  # on x86; Python's errno module lacks it
API = "Documentation/virt/kvm/api.rst, section 4"

# By name: what it says in general, and what to do.
ERRNOS: dict[str, tuple[str, str]] = {
    "E2BIG": ("A list is too long, or the room for an answer too small.", "Give a smaller list, or more room."),
    "EACCES": (
        "This user may not open /dev/kvm, or the mapping that was asked for is not allowed.",
        "'pykvm doctor' says which group may, and how to join it.",
    ),
    "EAGAIN": ("Nothing is wrong: try again.", "Call again; KVM_RUN gives it when a waiting CPU was woken."),
    "EBADF": (
        "The descriptor is closed, or it was never one.",
        "Keep the Kvm, Vm and Vcpu objects open as long as they are used.",
    ),
    "EBUSY": (
        "What is needed is in use: another hypervisor has the processor, or it is too late to change this.",
        "See the ioctl's own explanation.",
    ),
    "EEXIST": ("There is one already: an id, a slot's place, a controller.", "Use the one there is, or another place."),
    "EFAULT": (
        "A pointer leads to memory that this process does not have; from KVM_RUN: a slot's memory does.",
        "Look whether guest memory was unmapped while a VM used it.",
    ),
    "EHWPOISON": ("The host's memory has a hardware error there.", "Look into the host's kernel log."),
    "EINTR": ("A signal came.", "Do what the signal was for, then call again."),
    "EINVAL": (
        "Something about the argument is wrong, and the kernel does not say what. An ioctl on the wrong kind of "
        "descriptor gives it too.",
        "Ask for the ioctl as well: pykvm explain errno EINVAL KVM_SET_SREGS.",
    ),
    "EIO": (
        "The VM belongs to another process, or KVM gave it up after a bug in itself.",
        "VMs do not survive fork(): make them in the process that uses them. Look into the kernel log.",
    ),
    "EMFILE": ("This process has as many descriptors as it may.", "Close VMs that are not used, or raise ulimit -n."),
    "ENFILE": ("The whole system has as many descriptors as it can.", "Look who holds so many: lsof."),
    "ENODEV": ("There is no such device.", "Load kvm_intel or kvm_amd; 'pykvm doctor' says more."),
    "ENOENT": ("There is none: no such file, slot, or registration.", "Look for what was meant, or make it first."),
    "ENOMEM": ("The kernel has no memory left for it.", "Use less guest memory or fewer VMs; look at cgroup limits."),
    "ENOSPC": ("There is no room for one more.", "Take away what is not needed any more."),
    "ENOSYS": ("This kernel does not have that.", "Ask for the capability with KVM_CHECK_EXTENSION first."),
    "ENOTTY": (
        "This descriptor does not know that ioctl: the kernel is too old, or it is another kind of descriptor.",
        "Ask for the capability with KVM_CHECK_EXTENSION; see on which descriptor the ioctl is made.",
    ),
    "ENXIO": (
        "The VM does not have what this works on: interrupt controllers or a timer in the kernel.",
        "Create it first, or use the ioctl for the other arrangement.",
    ),
    "EOPNOTSUPP": ("This host cannot do that.", "Ask for the capability with KVM_CHECK_EXTENSION first."),
    "EPERM": ("It is not allowed.", "See the ioctl's own explanation; in a container, see its seccomp profile."),
}


def explain(words: Sequence[str]) -> Explanation:
    """Return what an errno means: "EINVAL" or "22", alone or followed by an ioctl. Raises: ConfigurationError."""
    words = one_or_two(words, "an errno, and an ioctl if there is one, as EINVAL KVM_SET_SREGS")
    name = _errno_name(words[0])
    general, advice = ERRNOS[name]
    title = f"errno {name} ({_number(name)}): {_strerror(name)}"
    if len(words) == 1:
        givers = [ioctl for ioctl, entry in IOCTLS.items() if name in entry.errors]
        when = f"From {', '.join(givers)}." if givers else ""
        return Explanation(title, general, when, (advice,), (API, f"errno(3): {name}"))
    return _of_ioctl(title, name, find_ioctl(words[1]))


def names() -> list[str]:
    """Return the names that ``explain`` knows."""
    return list(ERRNOS)


def _of_ioctl(title: str, name: str, ioctl: str) -> Explanation:
    general, advice = ERRNOS[name]
    entry = IOCTLS[ioctl]
    see = (f"Documentation/virt/kvm/api.rst, {ioctl}", f"pykvm explain ioctl {ioctl}")
    why = entry.errors.get(name)
    if why:
        return Explanation(f"{title}, from {ioctl}", f"{entry.what} It failed: {why}.", "", (entry.advice,), see)
    others = ", ".join(entry.errors) or "none"
    what = f"{ioctl} has no special meaning for it (it has for: {others}). In general: {general}"
    return Explanation(f"{title}, from {ioctl}", what, "", (advice,), see)


def _errno_name(word: str) -> str:
    if not looks_like_number(word):
        return find_name(word, ERRNOS, "errno")
    # The kernel returns -22, and the C library turns that into errno 22: both are meant.
    number = parse_number(word, 32, "an errno")
    number = min(number, (1 << 32) - number)
    name = errno_module.errorcode.get(number, "EHWPOISON" if number == EHWPOISON else "")
    if name not in ERRNOS:
        raise unknown(name or word, ERRNOS, "errno of KVM")
    return name


def _strerror(name: str) -> str:
    return os.strerror(_number(name))


def _number(name: str) -> int:
    return int(getattr(errno_module, name, EHWPOISON))
