"""The exit statuses of ``pykvm run``, ``trace`` and ``replay``, and what to do about each.

See: ``pykvm run --help``, docs/design.md. Leaves out statuses of other programs: a shell adds 128 to a signal's number.
"""

from __future__ import annotations

from collections.abc import Sequence

from pykvm.errors import ConfigurationError
from pykvm.observe.explaining.explanation import Explanation
from pykvm.observe.explaining.lookup import one, parse_number

__all__ = ["STATUSES", "explain"]

STATUSES: dict[int, tuple[str, str, str]] = {
    0: (
        "the guest stopped on its own",
        "HLT with nothing that could wake it, a power-off, a reset, or a request for a shutdown.",
        "A guest that has something to report writes to the debug-exit port 0xf4.",
    ),
    2: (
        "wrong use",
        "An unknown option, an image that is missing or malformed, or values that cannot work together.",
        "stderr says what and where; --help lists the options.",
    ),
    69: (
        "KVM cannot be used here",
        "/dev/kvm is missing or may not be opened, or KVM refused an ioctl.",
        "'pykvm doctor' says how to mend it.",
    ),
    74: ("stdout or a file cannot be written", "The disk is full, or the file is not writable.", "Make room."),
    76: (
        "the replay came out otherwise than the recording",
        "A device answered differently from when the run was recorded.",
        "stderr shows the first difference.",
    ),
    124: (
        "the time limit was reached",
        "The guest was still running: an endless loop, or a HLT that waits for an interrupt which never comes.",
        "The report shows where it was; --timeout gives it longer.",
    ),
    125: (
        "the guest crashed",
        "A triple fault, an instruction that KVM cannot emulate, or an entry that the processor refused.",
        "stderr has the report, with the likely cause.",
    ),
    130: ("interrupted", "Ctrl-C, or Ctrl-A x at the guest's serial console.", ""),
    141: ("whoever read stdout went away", "As in: pykvm run ... | head.", ""),
}


def explain(words: Sequence[str]) -> Explanation:
    """Return what the exit status in ``words`` says. Raises: ConfigurationError."""
    status = parse_number(one(words, "one exit status, as 125"), 64, "an exit status")
    if status > 255:
        raise ConfigurationError(f"{status} is no exit status: they are 0 to 255")
    see = ("pykvm run --help", "docs/design.md")
    written = f"The guest wrote {status >> 1:#x} to the debug-exit port 0xf4 (or a value with the same low 7 bits)."
    if status not in STATUSES:
        if status & 1:
            return Explanation(f"status {status}: a debug exit", written, "v written gives (v << 1) | 1.", see=see)
        return Explanation(
            f"status {status}: none of pykvm's",
            "pykvm ends with other numbers; above 128 a shell means that a signal killed the program: 128 + signal.",
            see=see,
            known=False,
        )
    title, when, advice = STATUSES[status]
    other = f"Or: {written[0].lower()}{written[1:]} Without a word on stderr it was that." if status & 1 else ""
    return Explanation(
        f"status {status}: {title}", f"pykvm run ended with {status}: {title}.", when, (advice, other), see
    )
