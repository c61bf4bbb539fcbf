"""``RestorePlan``: puts many devices back into states that were checked, thousands of times a second.

``Stateful.restore`` walks a device and its parts anew each time, and sets one attribute after another. Whoever restores
the same devices to the same state again and again has a plan made, which does no more than it must. Most devices are as
they were, and looking at all attributes of an object at one blow is quicker than setting them; so only those that are
not equal are set, in place of what can be changed in place with a copy. Then come the calls that ``Stateful._restored``
is for, those of parts first. Leaves out checking: a plan is made of what ``Stateful.check`` returned.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from operator import itemgetter

from pykvm.devices.state import Checked, Stateful

__all__ = ["RestorePlan"]

# How one object is looked at, its attributes, what they are to be, and what makes them so.
_Object = tuple[Callable[[dict[str, object]], object], dict[str, object], object, Callable[[], None]]


class RestorePlan:
    """How ``devices``, each with its checked state, are restored. They keep their parts meanwhile."""

    def __init__(self, devices: Iterable[tuple[Stateful, Checked]]) -> None:
        self._objects: list[_Object] = []
        self._hooks: list[Callable[[], None]] = []
        self._walked: list[tuple[Stateful, Checked]] = []  # which only ``Stateful.restore`` knows how to restore
        for device, state in devices:
            if all(map(_is_plain, device.with_parts())):
                self._add(device, state)
            else:
                self._walked.append((device, state))

    def restore(self) -> None:
        """Restore them all, as ``Stateful.restore`` would."""
        for look, attributes, wanted, put_back in self._objects:
            if look(attributes) != wanted:
                put_back()
        for device, state in self._walked:
            device.restore(state)
        for hook in self._hooks:
            hook()

    def _add(self, device: Stateful, state: Checked) -> None:
        if state.values or state.templates:
            self._objects.append(_plan_object(vars(device), state))
        for part, below in zip(device.direct_parts(), state.parts, strict=True):
            self._add(part, below)
        if type(device)._restored is not Stateful._restored:
            self._hooks.append(device._restored)


def _plan_object(attributes: dict[str, object], state: Checked) -> _Object:
    def put_back() -> None:
        attributes.update(state.values)
        attributes.update((name, template.copy()) for name, template in state.templates)

    values = dict((*state.values, *state.templates))
    look = itemgetter(*values)
    return look, attributes, look(values), put_back


def _is_plain(device: Stateful) -> bool:
    """Return whether what ``device`` remembers is plain attributes: no slots, no properties, nothing that listens."""
    kind = type(device)
    listens = kind.__setattr__ is not object.__setattr__ or kind._restore is not Stateful._restore
    return not listens and all(
        name in vars(device) and not inspect.isdatadescriptor(inspect.getattr_static(kind, name, None))
        for name in device.remembers
    )
