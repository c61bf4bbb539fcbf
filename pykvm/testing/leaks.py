"""Finding what a test has opened and never closed: machines, descriptors of KVM, guest memory.

While a ``LeakDetector`` is on, it hears of everything of these that is made, and where. What is not closed when the
test is over, and can still be reached, is a leak; so is a descriptor that Python had to close because nobody could
reach it any more, for which it warns. See: ``pykvm.kvm.descriptor``. Leaves out threads and files of the test's own.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from pykvm.errors import PykvmError
from pykvm.kvm.descriptor import Descriptor
from pykvm.machine import Machine
from pykvm.memory import GuestMemory
from pykvm.units import format_size

__all__ = ["LeakDetector"]

PACKAGE = Path(__file__).parent.parent
WARNING = "was never closed: use it as a context manager"  # how Descriptor.__del__ says it


class Closeable(Protocol):
    """What the detector looks after."""

    @property
    def closed(self) -> bool:
        """Whether ``close()`` has run."""

    def close(self) -> None:
        """Close it."""


class LeakDetector:
    """A context manager; ``leaks()`` is what was made since it was entered, or last asked, and never closed."""

    def __init__(self) -> None:
        self._made: weakref.WeakKeyDictionary[Closeable, str] = weakref.WeakKeyDictionary()
        self._lost: list[str] = []
        self._paused = 0
        self._undo = ExitStack()

    def leaks(self) -> list[str]:
        """Return a sentence for each thing that leaked, and close it."""
        leaked = self._open()
        if any(isinstance(thing, GuestMemory) for thing, _ in leaked):
            gc.collect()  # memory that nobody can reach is given back without a word
            del leaked
            leaked = self._open()
        sentences = [f"{_name(thing)}, made at {place}" for thing, place in leaked]
        for thing, _ in sorted(leaked, key=lambda pair: not isinstance(pair[0], Machine)):
            with contextlib.suppress(PykvmError):
                thing.close()
        lost, self._lost = self._lost, []
        self._made.clear()
        return sentences + lost

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take no note of what is made meanwhile: it lives longer than a test."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def __enter__(self) -> Self:
        for kind in (Descriptor, GuestMemory, Machine):
            self._listen(kind)
        before = sys.unraisablehook
        self._undo.callback(setattr, sys, "unraisablehook", before)
        sys.unraisablehook = functools.partial(self._on_unraisable, before)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._undo.close()

    # ---- inside ----

    def _listen(self, kind: type) -> None:
        make: Callable[..., None] = kind.__init__  # type: ignore[misc]

        @functools.wraps(make)
        def init(made: Closeable, *args: object, **options: object) -> None:
            with self.paused() if isinstance(made, Machine) else nullcontext():  # it closes its own parts
                make(made, *args, **options)
            if not self._paused:
                self._made[made] = _place()

        setattr(kind, "__init__", init)  # noqa: B010 (mypy forbids the assignment)
        self._undo.callback(setattr, kind, "__init__", make)

    def _open(self) -> list[tuple[Closeable, str]]:
        return [(thing, place) for thing, place in self._made.items() if not thing.closed]

    def _on_unraisable(self, before: Callable[[sys.UnraisableHookArgs], object], found: sys.UnraisableHookArgs) -> None:
        if isinstance(found.exc_value, ResourceWarning) and WARNING in str(found.exc_value):
            self._lost.append(str(found.exc_value).partition(":")[0])
        else:
            before(found)


def _name(thing: Closeable) -> str:
    if isinstance(thing, Descriptor):
        return thing.label
    if isinstance(thing, GuestMemory):
        return f"guest memory of {format_size(sum(region.size for region in thing.regions))}"
    return "a machine"


def _place() -> str:
    """Return the file and line, outside this package, that is making something."""
    frame = sys._getframe(2)
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
