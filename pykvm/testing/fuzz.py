"""Fuzzing a device: random accesses against every promise that a device makes to the bus.

    fuzz_device(MyDevice, size=8)

A device must answer every access of any width and value, at any offset of its range: with exactly the bytes that were
asked for, without raising, in finite time, and without holding ever more memory. What breaks a promise is shrunk to
the shortest list of accesses that does, and reported as code to paste into a test. Neither KVM nor pytest is needed;
Hypothesis is. See: ``pykvm.devices.device`` for the promises. Leaves out whether the device does what it should.
"""

from __future__ import annotations

import gc
import signal
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import hypothesis
from hypothesis import HealthCheck, Phase

from pykvm.devices import Device
from pykvm.errors import ConfigurationError, PykvmError
from pykvm.kvm import MmioRead, MmioWrite
from pykvm.testing.strategies.accesses import mmio_accesses
from pykvm.units import Gpa, KiB

__all__ = ["DeviceFault", "fuzz_device"]

WIDTHS = range(1, 9)  # beside 1, 2, 4 and 8: what is left of an access that straddles the end of the device's range

LONGEST = 50  # accesses in a list

# A leak shows when a short list is repeated twice as often, again and again, and memory never stops growing.
LEAK_ACCESSES = 8
FIRST_REPETITIONS, MOST_REPETITIONS = 256, 1 << 16

# Shrinking a hang hangs, and takes the time limit each time: so often, and no more.
MOST_SLOW_FAULTS = 20

Access = MmioRead | MmioWrite
Attempt = Callable[[list[Access]], "DeviceFault | None"]


class DeviceFault(PykvmError, AssertionError):
    """A device broke a promise. ``accesses`` is the shortest list that makes it do so; their addresses are offsets."""

    def __init__(self, message: str, accesses: Sequence[Access]) -> None:
        self.accesses = tuple(accesses)
        super().__init__(message)


class _Hang(BaseException):
    """Raised in the middle of an access that takes too long; no device catches it by catching Exception."""


def fuzz_device(
    device_factory: Callable[[], Device],
    *,
    size: int = 16,
    max_examples: int = 200,
    seed: int | None = None,
    time_limit: float = 2.0,
    memory_limit: int = 64 * KiB,
) -> None:
    """Try lists of accesses on devices that ``device_factory`` makes, a new one for each list.

    ``size`` is the number of addresses the device answers at. ``max_examples`` lists are tried, a tenth of them again
    and again to see whether memory grows by more than ``memory_limit`` bytes; what the factory connects the device
    to is counted too, so let an output forget what it is given. A list that takes ``time_limit`` seconds hangs; that is
    found out in the main thread only. With the same ``seed`` the lists are the same.

    Raises: DeviceFault, as soon as a promise is broken; ConfigurationError for numbers that are not above 0.
    """
    for name, value in (("size", size), ("max_examples", max_examples), ("time_limit", time_limit)):
        if value <= 0:
            raise ConfigurationError(f"{name} must be above 0, not {value}")
    fuzzer = _Fuzzer(device_factory, time_limit, memory_limit)
    with _alarm_raises():
        _search(fuzzer.play_once, size, LONGEST, max_examples, seed)
        _search(fuzzer.play_often, size, LEAK_ACCESSES, max(1, max_examples // 10), seed)


def _search(attempt: Attempt, size: int, longest: int, max_examples: int, seed: int | None) -> None:
    """Call ``attempt`` with random lists. Raises: DeviceFault, for the shortest list that makes it return one."""
    faults: list[DeviceFault] = []
    sparing = _Sparing(attempt)

    @hypothesis.settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @hypothesis.given(mmio_accesses(0, size, sizes=WIDTHS, max_size=longest))
    def run(accesses: list[Access]) -> None:
        fault = sparing(accesses)
        if fault is not None:
            faults.append(fault)
            raise _BrokenError

    try:
        (run if seed is None else hypothesis.seed(seed)(run))()
    except _BrokenError:
        shortest = _without_needless(attempt, faults[-1])  # Hypothesis ends with the best it has found
        raise shortest from shortest.__cause__
    except hypothesis.errors.Flaky:
        unsteady = "a new device does not do the same every time, so it depends on what is outside it; once"
        raise DeviceFault(f"{unsteady} {faults[-1]}", faults[-1].accesses) from faults[-1].__cause__


class _BrokenError(Exception):
    pass


class _Sparing:
    """An attempt that does not do twice what takes long: hangs and leaks."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._slow: dict[str, DeviceFault] = {}

    def __call__(self, accesses: list[Access]) -> DeviceFault | None:
        key = repr(accesses)
        if key in self._slow or len(self._slow) >= MOST_SLOW_FAULTS:
            return self._slow.get(key)
        fault = self._attempt(accesses)
        if fault is not None and fault.__cause__ is None:
            self._slow[key] = fault
        return fault


def _without_needless(attempt: Attempt, fault: DeviceFault) -> DeviceFault:
    """Return a fault from fewer and simpler accesses, as far as one thing after another can be left out."""
    for position in reversed(range(len(fault.accesses))):
        simpler = _in_simpler_ways(attempt, fault, position)
        while simpler is not None:
            fault = simpler
            simpler = _in_simpler_ways(attempt, fault, position)
    return fault


def _in_simpler_ways(attempt: Attempt, fault: DeviceFault, position: int) -> DeviceFault | None:
    if position >= len(fault.accesses):
        return None
    before, access, after = fault.accesses[:position], fault.accesses[position], fault.accesses[position + 1 :]
    tried = (attempt([*before, *simpler, *after]) for simpler in [[], *_simpler(access)])
    return next((found for found in tried if found is not None), None)


def _simpler(access: Access) -> Iterator[list[Access]]:
    if isinstance(access, MmioRead):
        if access.size > 1:
            yield [MmioRead(access.address, access.size - 1)]
        return
    data = access.data
    if len(data) > 1:
        yield [MmioWrite(access.address, data[:-1])]
        yield [MmioWrite(Gpa(access.address + 1), data[1:])]
    for place, byte in enumerate(data):
        for smaller in {0, byte & -byte, 1 << byte.bit_length() >> 1} - {byte}:  # no bit, the lowest, the highest
            if smaller < byte:
                yield [MmioWrite(access.address, data[:place] + bytes([smaller]) + data[place + 1 :])]


class _Fuzzer:
    def __init__(self, factory: Callable[[], Device], time_limit: float, memory_limit: int) -> None:
        self._factory = factory
        self._time_limit = time_limit
        self._memory_limit = memory_limit

    # ---- each list once: no exception, no hang, the right replies ----

    def play_once(self, accesses: list[Access]) -> DeviceFault | None:
        return self._play(self._factory(), accesses)

    def _play(self, device: Device, accesses: Sequence[Access]) -> DeviceFault | None:
        done = 0
        try:
            with _time_limit(self._time_limit):
                for access in accesses:
                    done += 1
                    _check_reply(access, _perform(device, access))
        except KeyboardInterrupt:
            raise
        except _Hang:
            return self._fault(f"did not return within {self._time_limit:g} s", accesses[:done])
        except _WrongReplyError as error:
            return self._fault(str(error), accesses[:done])
        except BaseException as error:  # SystemExit too: a guest must not be able to end the program
            fault = self._fault(f"raised {type(error).__name__}: {error}", accesses[:done])
            fault.__cause__ = error
            return fault
        return None

    def _fault(self, what: str, accesses: Sequence[Access]) -> DeviceFault:
        return DeviceFault(f"access {len(accesses)} {what}\n\n{_as_code(self._factory, accesses)}", accesses)

    # ---- each list again and again: memory is bounded ----

    def play_often(self, accesses: list[Access]) -> DeviceFault | None:
        device = self._factory()
        with _traced_memory():
            fault = self._repeat(device, accesses, FIRST_REPETITIONS)
            start = before = tracemalloc.get_traced_memory()[0]
            more = FIRST_REPETITIONS
            while fault is None and more <= MOST_REPETITIONS:
                fault = self._repeat(device, accesses, more)
                now = _memory_in_use(before + more // 2)  # one byte an access would show as more
                if now < before + more // 2:
                    break
                if now - start > self._memory_limit:
                    return self._leak(accesses, 2 * more, now - start)
                before, more = now, 2 * more
        return fault

    def _repeat(self, device: Device, accesses: list[Access], times: int) -> DeviceFault | None:
        for _ in range(times):
            fault = self._play(device, accesses)
            if fault is not None:
                return self._fault_of_many(fault, accesses, times)
        return None

    def _fault_of_many(self, fault: DeviceFault, accesses: list[Access], times: int) -> DeviceFault:
        what = str(fault).partition("\n")[0]
        many = DeviceFault(f"repeated, {what}\n\n{_as_code(self._factory, accesses, 2 * times)}", accesses)
        many.__cause__ = fault.__cause__
        return many

    def _leak(self, accesses: list[Access], times: int, grown: int) -> DeviceFault:
        code = _as_code(self._factory, accesses, times)
        return DeviceFault(f"memory grew by {grown // KiB} KiB and did not stop growing\n\n{code}", accesses)


class _WrongReplyError(Exception):
    pass


def _perform(device: Device, access: Access) -> object:
    match access:
        case MmioRead(address, size):
            return device.read(address, size)
        case MmioWrite(address, data):
            device.write(address, data)
            return None


def _check_reply(access: Access, reply: object) -> None:
    if isinstance(access, MmioWrite):
        return
    if not isinstance(reply, bytes):
        raise _WrongReplyError(f"answered with {reply!r}, where it must be bytes")
    if len(reply) != access.size:
        raise _WrongReplyError(f"answered with {len(reply)} bytes ({reply!r}), where {access.size} were asked for")


def _as_code(factory: Callable[[], Device], accesses: Sequence[Access], times: int = 1) -> str:
    name = getattr(factory, "__qualname__", "")
    lines = [f"    device = {name if name.replace('.', '_').isidentifier() else 'device_factory'}()"]
    indent = "    " if times == 1 else "        "
    if times > 1:
        lines.append(f"    for _ in range({times}):")
    for access in accesses:
        if isinstance(access, MmioRead):
            lines.append(f"{indent}device.read({access.address:#x}, {access.size})")
        else:
            lines.append(f'{indent}device.write({access.address:#x}, bytes.fromhex("{access.data.hex()}"))')
    return "\n".join(lines)


# ---- time ----


@contextmanager
def _alarm_raises() -> Iterator[None]:
    """Let SIGALRM raise _Hang, in the main thread; afterwards it, and its timer, do what they did before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def raise_hang(number: int, frame: FrameType | None) -> None:
        raise _Hang

    delay, interval = signal.setitimer(signal.ITIMER_REAL, 0)
    handler = signal.signal(signal.SIGALRM, raise_hang)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, delay, interval)


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


# ---- memory ----


@contextmanager
def _traced_memory() -> Iterator[None]:
    was_tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        yield
    finally:
        if not was_tracing:
            tracemalloc.stop()


def _memory_in_use(suspicious: int) -> int:
    """Return the bytes in use; if they are ``suspicious`` or more, of after a collection of garbage."""
    now = tracemalloc.get_traced_memory()[0]
    if now < suspicious:
        return now
    gc.collect()  # which takes long
    return tracemalloc.get_traced_memory()[0]
