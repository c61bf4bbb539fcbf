"""``RestorePlan``: puts many devices back into states that were checked, thousands of times a second.

``Stateful.restore`` walks a device and its parts anew each time, and sets one attribute after another. Whoever restores
the same devices to the same state again and again has a plan made, which does no more than it must: the attributes of
each object at one blow, then copies of what can be changed in place, then the calls that ``Stateful._restored`` is for,
those of parts first. Leaves out checking: a plan is made of what ``Stateful.check`` returned.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterable

from pykvm.devices.state import Checked, Stateful

__all__ = ["RestorePlan"]


class RestorePlan:
    """How ``devices``, each with its checked state, are restored. They keep their parts meanwhile."""

    def __init__(self, devices: Iterable[tuple[Stateful, Checked]]) -> None:
        self._attributes: list[tuple[Callable[[dict[str, object]], None], dict[str, object]]] = []
        self._templates: list[tuple[dict[str, object], str, bytearray | deque[object]]] = []
        self._hooks: list[Callable[[], None]] = []
        self._walked: list[tuple[Stateful, Checked]] = []  # which only ``Stateful.restore`` knows how to restore
        for device, state in devices:
            if all(map(_is_plain, device.with_parts())):
                self._add(device, state)
            else:
                self._walked.append((device, state))

    def restore(self) -> None:
        """Restore them all, as ``Stateful.restore`` would."""
        for update, values in self._attributes:
            update(values)
        for attributes, name, template in self._templates:
            if attributes[name] != template:  # looking is quicker than copying
                attributes[name] = template.copy()
        for device, state in self._walked:
            device.restore(state)
        for hook in self._hooks:
            hook()

    def _add(self, device: Stateful, state: Checked) -> None:
        if state.values:
            self._attributes.append((vars(device).update, dict(state.values)))
        self._templates += [(vars(device), name, template) for name, template in state.templates]
        for part, below in zip(device.direct_parts(), state.parts, strict=True):
            self._add(part, below)
        if type(device)._restored is not Stateful._restored:
            self._hooks.append(device._restored)


def _is_plain(device: Stateful) -> bool:
    """Return whether what ``device`` remembers is plain attributes: no slots, no properties, nothing that listens."""
    kind = type(device)
    listens = kind.__setattr__ is not object.__setattr__ or kind._restore is not Stateful._restore
    return not listens and all(
        name in vars(device) and not inspect.isdatadescriptor(inspect.getattr_static(kind, name, None))
        for name in device.remembers
    )
