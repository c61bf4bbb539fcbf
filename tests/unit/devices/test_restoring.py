"""A plan restores what Stateful.restore does, whatever the device's class is like."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import ClassVar

import pytest

from pykvm.devices.fields import BYTE, Memory, Queue
from pykvm.devices.restoring import RestorePlan
from pykvm.devices.state import Remembered, Stateful


class Part(Stateful):
    name = "part"
    remembers: ClassVar[Remembered] = {"_value": BYTE, "memory": Memory(8), "queue": Queue(BYTE, 4)}

    def __init__(self, calls: list[str]) -> None:
        self._value = 1
        self.memory = bytearray(8)
        self.queue: deque[int] = deque()
        self._calls = calls

    def _restored(self) -> None:
        self._calls.append(f"part {self._value}")


class Whole(Stateful):
    name = "whole"
    remembers: ClassVar[Remembered] = {"value": BYTE}
    parts: ClassVar[tuple[str, ...]] = ("one", "others")

    def __init__(self, calls: list[str]) -> None:
        self.value = 1
        self.one = Part(calls)
        self.others = (Part(calls), Part(calls))
        self._calls = calls

    def _restored(self) -> None:
        self._calls.append("whole")


class WithSlots(Stateful):
    __slots__ = ("value",)
    name = "slots"
    remembers: ClassVar[Remembered] = {"value": BYTE}

    def __init__(self) -> None:
        self.value = 1


class WithProperty(Stateful):
    name = "property"
    remembers: ClassVar[Remembered] = {"value": BYTE}

    def __init__(self) -> None:
        self.doubled = 2

    @property
    def value(self) -> int:
        return self.doubled // 2

    @value.setter
    def value(self, value: int) -> None:
        self.doubled = 2 * value


class Listening(Stateful):
    name = "listening"
    remembers: ClassVar[Remembered] = {"value": BYTE}
    heard = 0

    def __init__(self) -> None:
        self.value = 1

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        type(self).heard += 1


def test_a_device_and_its_parts_are_restored_and_parts_are_called_first() -> None:
    calls: list[str] = []
    device = Whole(calls)
    state = device.save()
    plan = RestorePlan([(device, device.check(state))])
    for _ in range(2):
        device.value = device.one._value = device.others[1]._value = 9
        device.one.memory[0] = 9
        device.others[0].queue.append(9)
        calls.clear()
        plan.restore()
        assert device.save() == state
        assert calls == ["part 1", "part 1", "part 1", "whole"]


@pytest.mark.parametrize("kind", [WithSlots, WithProperty, Listening])
def test_a_class_that_is_not_plain_attributes_is_restored_its_own_way(kind: type) -> None:
    device = kind()
    plan = RestorePlan([(device, device.check(device.save()))])
    for value in (5, 6):
        device.value = value
        plan.restore()
        assert device.value == 1


def test_what_can_be_changed_in_place_is_copied_each_time() -> None:
    device = Part([])
    plan = RestorePlan([(device, device.check(device.save()))])
    plan.restore()
    before = device.memory
    before[0] = 1
    plan.restore()
    assert device.memory is not before
    assert not any(device.memory)


def test_each_attribute_alone_comes_back_and_what_is_as_it_was_is_left_alone() -> None:
    part = Part([])
    plan = RestorePlan([(part, part.check(part.save()))])
    plan.restore()
    queue, memory = part.queue, part.memory
    changes: list[Callable[[], object]] = [
        lambda: setattr(part, "_value", 9),
        lambda: part.memory.__setitem__(7, 9),
        lambda: part.queue.append(9),
    ]
    for change in changes:
        change()
        plan.restore()
        assert part.save() == Part([]).save()
    assert part.queue is not queue
    assert part.memory is not memory
    queue, memory = part.queue, part.memory
    plan.restore()
    assert part.queue is queue
    assert part.memory is memory
