"""From a machine that has come to a stop to words about it: a report on what went wrong, or a note on what may have.

Leaves out the words: see ``report`` and ``diagnosis``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm.kvm import Exit
from pykvm.machine.controllers import has_taken_interrupts, look_at_controllers
from pykvm.machine.diagnosis import remark
from pykvm.machine.report import report
from pykvm.machine.result import CpuResult
from pykvm.machine.scene import Scene
from pykvm.machine.stop import Halted, Stop

if TYPE_CHECKING:
    from pykvm.boot import Image
    from pykvm.machine.hardware import Hardware

__all__ = ["explain"]


def explain(
    machine: Hardware,
    stop: Stop,
    cpu: int,
    cpus: tuple[CpuResult, ...],
    last_exits: tuple[Exit, ...],
    exits: int,
    duration: float,
    image: Image | None,
) -> tuple[str, str]:
    """Return the report and the note on ``machine``, which stands still: see ``RunResult``. At most one is not empty.

    ``stop`` is why the run ended, by ``cpu``'s doing, after ``exits`` exits and ``duration`` seconds: a HLT gets a note
    at most, all else a report.
    """
    vcpu, guilty = machine.vcpus[cpu], cpus[cpu]
    scene = Scene(
        *(stop, guilty.registers, guilty.sregs, machine.memory, last_exits, exits, duration, image, cpu, cpus),
        *(vcpu.get_vcpu_events(), look_at_controllers(machine.interrupts, machine.vm, vcpu)),
    )
    if not isinstance(stop, Halted):
        return report(scene), ""
    return "", "" if has_taken_interrupts(vcpu) else remark(scene)
