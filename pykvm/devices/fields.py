"""The kinds of fields that a device's state is made of: how a value is written as JSON, and checked when it comes back.

    kind       attribute            JSON
    Number     int in a range       number
    Mask       int, some bits only  number
    Bool       bool                 true, false
    Choice     one of some values   that value
    Member     member of an Enum    its value
    Flags      enum.Flag            its value, a number
    Maybe      another kind, None   that, or null
    Tuple      tuple                list
    Record     dataclass            object with its fields
    Either     one of some Records  the same
    Memory     bytearray            hexadecimal digits, without the zeros at the end
    Bytes      deque of bytes       hexadecimal digits
    Queue      deque                list

What comes from a file may be anything: ``check`` lets through only what a device can have had. Leaves out what two
fields say about each other: whoever keeps them must bear any pair.
"""

from __future__ import annotations

import enum
import reprlib
from abc import ABC, abstractmethod
from collections import deque
from typing import Generic, Never, TypeVar

from pykvm.errors import ConfigurationError

__all__ = [
    "BYTE",
    "TIME",
    "Bool",
    "Bytes",
    "Choice",
    "Either",
    "Flags",
    "Json",
    "Kind",
    "Mask",
    "Maybe",
    "Member",
    "Memory",
    "Number",
    "Queue",
    "Record",
    "Tuple",
    "malformed",
]

Json = None | bool | int | str | list["Json"] | dict[str, "Json"]
T_contra = TypeVar("T_contra", contravariant=True)
T = TypeVar("T")


class Kind(ABC, Generic[T_contra]):
    """What a field may hold."""

    @abstractmethod
    def save(self, value: T_contra) -> Json:
        """Return ``value`` as JSON has it."""

    @abstractmethod
    def check(self, data: object, where: str) -> object:
        """Return the value that ``data`` stands for. A bytearray or deque is copied before it is used.

        Raises: ConfigurationError, which begins with ``where``, if a field of this kind cannot have it.
        """


# ---- plain values ----


class Number(Kind[int]):
    """A number from ``first`` to ``last``."""

    def __init__(self, last: int, first: int = 0) -> None:
        self.first, self.last = first, last

    def save(self, value: int) -> Json:
        """Return ``value``."""
        return int(value)  # of an IntEnum's member the number

    def check(self, data: object, where: str) -> int:
        """Return the number."""
        if type(data) is not int or not self.first <= data <= self.last:  # JSON's true is no number
            raise malformed(where, data, f"a number from {self.first} to {self.last}")
        return data


BYTE = Number(0xFF)
TIME = Number(2**63 - 1, -(2**63))  # a clock's nanoseconds


class Mask(Kind[int]):
    """A number with no bits but ``bits``."""

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def save(self, value: int) -> Json:
        """Return ``value``."""
        return int(value)  # of an IntEnum's member the number

    def check(self, data: object, where: str) -> int:
        """Return the number."""
        if type(data) is not int or data & ~self.bits:
            raise malformed(where, data, f"a number of the bits {self.bits:#x}")
        return data


class Bool(Kind[bool]):
    """True or False."""

    def save(self, value: bool) -> Json:
        """Return ``value``."""
        return value

    def check(self, data: object, where: str) -> bool:
        """Return the truth."""
        if type(data) is not bool:
            raise malformed(where, data, "true or false")
        return data


class Choice(Kind[int | str]):
    """One of ``values``."""

    def __init__(self, *values: int | str) -> None:
        self.values = values

    def save(self, value: int | str) -> Json:
        """Return ``value``."""
        return value

    def check(self, data: object, where: str) -> int | str:
        """Return the one."""
        if type(data) in (int, str):
            for value in self.values:
                if data == value:
                    return value
        raise malformed(where, data, f"one of {reprlib.repr(self.values)}")


class Member(Kind[enum.Enum]):
    """A member of the enumeration ``type_``, whose values are numbers."""

    def __init__(self, type_: type[enum.Enum]) -> None:
        self.members = {int(member.value): member for member in type_}

    def save(self, value: enum.Enum) -> Json:
        """Return its value."""
        return int(value.value)

    def check(self, data: object, where: str) -> enum.Enum:
        """Return the member."""
        if type(data) is not int or data not in self.members:
            raise malformed(where, data, f"one of {', '.join(map(str, self.members))}")
        return self.members[data]


class Flags(Kind[enum.Flag]):
    """Any of the flags ``all_flags``."""

    def __init__(self, all_flags: enum.Flag) -> None:
        self.all_flags = all_flags

    def save(self, value: enum.Flag) -> Json:
        """Return its value."""
        return int(value.value)

    def check(self, data: object, where: str) -> enum.Flag:
        """Return the flags."""
        if type(data) is not int or data & ~self.all_flags.value:
            raise malformed(where, data, f"a number of the bits {self.all_flags.value:#x}")
        return type(self.all_flags)(data)


# ---- made of others ----


class Maybe(Kind[T | None]):
    """What ``kind`` has, or None."""

    def __init__(self, kind: Kind[T]) -> None:
        self.kind = kind

    def save(self, value: T | None) -> Json:
        """Return null for None."""
        return None if value is None else self.kind.save(value)

    def check(self, data: object, where: str) -> object:
        """Return None for null."""
        return None if data is None else self.kind.check(data, where)


class Tuple(Kind[tuple[T, ...]]):
    """A tuple, each item of its own kind."""

    def __init__(self, *kinds: Kind[T]) -> None:
        self.kinds = kinds

    def save(self, value: tuple[T, ...]) -> Json:
        """Return a list."""
        return [kind.save(item) for kind, item in zip(self.kinds, value, strict=True)]

    def check(self, data: object, where: str) -> tuple[object, ...]:
        """Return the tuple."""
        if not isinstance(data, list) or len(data) != len(self.kinds):
            raise malformed(where, data, f"a list of {len(self.kinds)}")
        return tuple(
            kind.check(item, f"{where}[{n}]") for n, (kind, item) in enumerate(zip(self.kinds, data, strict=True))
        )


class Record(Kind[object]):
    """An instance of the frozen dataclass ``type_``, whose fields are of ``kinds``."""

    def __init__(self, type_: type, **kinds: Kind[Never]) -> None:
        self.type_, self.kinds = type_, kinds

    def save(self, value: object) -> Json:
        """Return its fields."""
        return {name: kind.save(getattr(value, name)) for name, kind in self.kinds.items()}

    def check(self, data: object, where: str) -> object:
        """Return the instance."""
        if not isinstance(data, dict) or data.keys() != self.kinds.keys():
            raise malformed(where, data, str(self))
        return self.type_(**{name: kind.check(data[name], f"{where}.{name}") for name, kind in self.kinds.items()})

    def __str__(self) -> str:
        return f"an object with {', '.join(self.kinds)}"


class Either(Kind[object]):
    """One of ``records``, which are told apart by the names of their fields."""

    def __init__(self, *records: Record) -> None:
        self.records = records

    def save(self, value: object) -> Json:
        """Return its fields."""
        return next(record for record in self.records if type(value) is record.type_).save(value)

    def check(self, data: object, where: str) -> object:
        """Return the instance."""
        for record in self.records:
            if isinstance(data, dict) and data.keys() == record.kinds.keys():
                return record.check(data, where)
        raise malformed(where, data, " or ".join(map(str, self.records)))


# ---- what can be changed ----


class Memory(Kind[bytearray]):
    """``size`` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def save(self, value: bytearray) -> Json:
        """Return hexadecimal digits; the zeros at the end are left out."""
        return value.rstrip(b"\0").hex()

    def check(self, data: object, where: str) -> bytearray:
        """Return all the bytes."""
        return bytearray(check_hex(data, where, self.size).ljust(self.size, b"\0"))


class Bytes(Kind[deque[int]]):
    """Up to ``limit`` bytes in a row; ``rolling`` if one more pushes out the first."""

    def __init__(self, limit: int, *, rolling: bool = False) -> None:
        self.limit, self.rolling = limit, rolling

    def save(self, value: deque[int]) -> Json:
        """Return hexadecimal digits."""
        return bytes(value).hex()

    def check(self, data: object, where: str) -> deque[int]:
        """Return the bytes."""
        return deque(check_hex(data, where, self.limit), self.limit if self.rolling else None)


class Queue(Kind[deque[T]]):
    """Up to ``limit`` values of the same kind, the first one first."""

    def __init__(self, kind: Kind[T], limit: int) -> None:
        self.kind, self.limit = kind, limit

    def save(self, value: deque[T]) -> Json:
        """Return a list."""
        return [self.kind.save(item) for item in value]

    def check(self, data: object, where: str) -> deque[object]:
        """Return the values."""
        if not isinstance(data, list) or len(data) > self.limit:
            raise malformed(where, data, f"a list of at most {self.limit}")
        return deque(self.kind.check(item, f"{where}[{n}]") for n, item in enumerate(data))


def check_hex(data: object, where: str, limit: int) -> bytes:
    """Return the bytes that ``data`` has in hexadecimal. Raises: ConfigurationError if it has more than ``limit``."""
    try:
        if isinstance(data, str) and len(data) <= 2 * limit:
            return bytes.fromhex(data)
    except ValueError:
        pass
    raise malformed(where, data, f"at most {limit} bytes in hexadecimal")


def malformed(where: str, data: object, wanted: str) -> ConfigurationError:
    """Return the error that the saved state's ``data`` at ``where`` is not ``wanted``."""
    return ConfigurationError(f"{where} is {reprlib.repr(data)} in the saved state: it must be {wanted}")
