"""What a device remembers: declared by its class, saved as JSON, checked, and restored as often as one likes.

    class Blinker(ByteRegisters, Stateful):
        name = "blinker"
        remembers: ClassVar[Remembered] = {"_on": Bool(), "_due": Maybe(TIME)}

        def _restored(self) -> None:          # the clock has forgotten all calls: ask for those that are due again
            self._alarm = None if self._due is None else self._clock.call_at(self._due, self._blink)

A state holds what the guest, and time, can have changed. It holds no wiring (callbacks, lines, the clock), and nothing
that was chosen when the machine was made: a state is restored into a device that was made alike. Times are those of
the device's clock, which is set before its devices are restored.

Restoring drives no line and calls nobody to whom the change would be news: a line's level is known at both ends, and
the other end is restored by itself. It costs little, as a test may want it thousands of times a second: ``check`` looks
at a state once, and what it returns is restored without a further look. Leaves out memory of megabytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Never

from pykvm.devices.fields import Json, Kind, malformed
from pykvm.errors import ConfigurationError

__all__ = ["Checked", "Remembered", "State", "Stateful"]

State = dict[str, Json]
Remembered = Mapping[str, Kind[Never]]


@dataclass(frozen=True, slots=True)
class Checked:
    """A state that ``Stateful.check`` has found good for devices of the class ``made_for``."""

    made_for: type
    values: tuple[tuple[str, object], ...]  # attributes
    templates: tuple[tuple[str, bytearray | deque[object]], ...]  # attributes that get a copy
    parts: tuple[Checked, ...]


class Stateful:
    """A device that can be saved and restored: base class.

    ``remembers`` names the attributes that are its state, and says of what kind each is; a device that remembers
    nothing says so with ``{}``. ``parts`` names those that are Stateful themselves, or tuples of such. In the state a
    field has its attribute's name without underscores in front.
    """

    name: str
    remembers: ClassVar[Remembered]
    parts: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not hasattr(cls, "remembers"):
            raise ConfigurationError(f"{cls.__name__} does not say what it remembers: remembers = {{}}, if nothing")

    def save(self) -> State:
        """Return the state as plain data that JSON takes; ``restore`` takes it back."""
        state: State = {_key(name): kind.save(getattr(self, name)) for name, kind in self.remembers.items()}
        for name, part in self._parts():
            state[name] = part.save()
        return state

    def check(self, state: object) -> Checked:
        """Return ``state``, which may come from anywhere, as something that ``restore`` takes without looking.

        Raises: ConfigurationError if no device of this class can have been in it, naming the device and the field.
        """
        return self._check(state, self.name)

    def restore(self, state: State | Checked) -> None:
        """Be as ``state`` says. The clock has its time already, and has forgotten what it was asked to call.

        Raises: ConfigurationError as ``check``, or for what another device has checked; nothing has changed then.
        """
        checked = state if type(state) is Checked else self.check(state)
        if checked.made_for is not type(self):
            raise ConfigurationError(f"{self.name}: this is the state of a {checked.made_for.__name__}")
        self._restore(checked)

    def with_parts(self) -> Iterator[Stateful]:
        """Return the device itself, and all that it saves and restores together with itself."""
        yield self
        for _, part in self._parts():
            yield from part.with_parts()

    def direct_parts(self) -> list[Stateful]:
        """Return the parts, but not theirs, in the order in which a Checked has them."""
        # Without the names, which would take longer than restoring the parts.
        found: list[Stateful] = []
        for name in self.parts:
            part = getattr(self, name)
            if isinstance(part, Stateful):
                found.append(part)
            else:
                found.extend(part)
        return found

    # ---- inside ----

    def _restored(self) -> None:
        """Do what is left to do when the attributes are restored: alarms, and what follows from the state."""

    def _restore(self, checked: Checked) -> None:
        for name, value in checked.values:
            setattr(self, name, value)
        for name, template in checked.templates:
            setattr(self, name, template.copy())
        if checked.parts:
            for part, state in zip(self.direct_parts(), checked.parts, strict=True):
                part._restore(state)
        self._restored()

    def _check(self, state: object, where: str) -> Checked:
        parts = dict(self._parts())
        fields = _fields(state, [*map(_key, self.remembers), *parts], where)
        values: list[tuple[str, object]] = []
        templates: list[tuple[str, bytearray | deque[object]]] = []
        for name, kind in self.remembers.items():
            value = kind.check(fields[_key(name)], f"{where}: {_key(name)}")
            if isinstance(value, bytearray | deque):
                templates.append((name, value))
            else:
                values.append((name, value))
        below = tuple(part._check(fields[name], f"{where}: {name}") for name, part in parts.items())
        return Checked(type(self), tuple(values), tuple(templates), below)

    def _parts(self) -> Iterator[tuple[str, Stateful]]:
        for name in self.parts:
            part = getattr(self, name)
            if isinstance(part, Stateful):
                yield _key(name), part
            else:
                yield from ((f"{_key(name)}_{number}", one) for number, one in enumerate(part))


def _key(attribute: str) -> str:
    return attribute.lstrip("_")


def _fields(state: object, names: list[str], where: str) -> dict[object, object]:
    """Return ``state`` if it is an object with the fields ``names`` and no others. Raises: ConfigurationError."""
    if not isinstance(state, dict):
        raise malformed(where, state, "an object with the device's fields")
    for name in names:
        if name not in state:
            raise ConfigurationError(f"{where}: {name} is missing from the saved state")
    for name in state:
        if name not in names:
            raise ConfigurationError(f"{where}: {name} is in the saved state, and no field of this device")
    return state
