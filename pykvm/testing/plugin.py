"""The pytest plugin, there as soon as pykvm is installed: fixtures, the mark ``kvm``, time limits, reports, leaks.

    def test_it(guest):
        assert guest("mov $42, %al; out %al, $0xf4").exit_code == 85

A test that uses a fixture which needs /dev/kvm has the mark ``kvm``. Where KVM cannot be used it skips with the reason,
or fails with it if that was asked for. See: docs/howto/test-your-device.md. Leaves out what works without pytest: the
rest of ``pykvm.testing``, which is imported only when a test needs it, for this module is loaded by every pytest.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from pykvm.observe import Recording, ReplayResult
    from pykvm.testing.assembly import Assembler
    from pykvm.testing.farend import LoneSerial
    from pykvm.testing.guest import GuestResult, Guests, WatchedMachine
    from pykvm.testing.leaks import LeakDetector
    from pykvm.testing.scripted import ScriptResult

__all__ = ["guest", "long_mode", "machine", "protected_mode", "real_mode", "replay", "scripted_vcpu", "serial"]

NEEDS_KVM = "pykvm_needs_kvm"  # the fixture that all fixtures with a VM depend on
TIME_LIMIT = 60.0  # seconds; a broken guest loops for ever more often than it crashes
AGAIN = 5.0  # seconds to the next signal, for a guest that is entered between the first one and KVM_RUN
FIXTURES = frozenset({NEEDS_KVM, "serial", "scripted_vcpu", "replay"})
CACHE = "pykvm-guests"

_why_no_kvm = pytest.StashKey[str]()
_detector: pytest.StashKey[LeakDetector] = pytest.StashKey()
_assembler: pytest.StashKey[Assembler] = pytest.StashKey()
_guests: pytest.StashKey[Guests] = pytest.StashKey()
_failed = pytest.StashKey[bool]()
_setting = pytest.StashKey[float | None]()  # pykvm_timeout, None if nobody set it


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--require-kvm`` and the setting ``pykvm_timeout``."""
    group = parser.getgroup("pykvm", "virtual machines on KVM")
    group.addoption("--require-kvm", action="store_true", help="fail, instead of skip, tests that need KVM without it")
    parser.addini("pykvm_timeout", "seconds each test may take, 0 for no limit; by default 60 for those that use pykvm")


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known, and a descriptor that nobody closed an error instead of a warning that nobody sees."""
    config.addinivalue_line(
        "markers",
        "kvm(timeout=None): needs a usable /dev/kvm; skipped with the reason where there is none, failed with "
        "--require-kvm or PYKVM_REQUIRE_KVM=1. timeout is in seconds, 0 for no limit.",
    )
    config.addinivalue_line("filterwarnings", "error:.* was never closed:ResourceWarning")
    config.stash[_setting] = _to_seconds(config.getini("pykvm_timeout"))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop looking for leaks."""
    if _detector in config.stash:
        config.stash[_detector].__exit__(None, None, None)


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a fixture with a VM."""
    for item in items:
        if NEEDS_KVM in _fixtures_of(item) and item.get_closest_marker("kvm") is None:
            item.add_marker(pytest.mark.kvm)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Skip or fail a test that cannot have KVM; limit the time its fixtures take."""
    _detect_leaks(item)
    if item.get_closest_marker("kvm") is not None:
        _require_kvm(item.config)
    with _time_limit(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Limit the time a test takes."""
    with _time_limit(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Limit the time it takes to clean up, and name what is left."""
    leaks: list[str] = []
    try:
        with _time_limit(item):
            result = yield
    finally:
        if _detector in item.config.stash:
            leaks = item.config.stash[_detector].leaks()
    # A test that failed on its way to close() has said what matters.
    if leaks and not item.stash.get(_failed, False):
        lines = "\n".join(f"  {leak}" for leak in leaks)
        pytest.fail(f"{item.nodeid} never closed:\n{lines}\nuse them as context managers", pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Let what a fixture of a wider scope makes outlive the test."""
    if fixturedef.scope == "function" or _detector not in request.config.stash:
        return (yield)
    with request.config.stash[_detector].paused():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failing test's report what its machines were doing."""
    report = yield
    if report.failed:
        item.stash[_failed] = True
        if _guests in item.stash and report.when != "teardown":
            from pykvm.testing.failure import sections

            for name, machine in item.stash[_guests].named_machines():
                report.sections += sections(machine, name)
    return report


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Say in words where exits, or lists of them, first differ."""
    if op != "==" or "pykvm.kvm" not in sys.modules:
        return None
    from pykvm.testing.exits import explain

    return explain(left, right)


# ---- fixtures ----


@pytest.fixture(scope="session")
def pykvm_needs_kvm(pytestconfig: pytest.Config) -> None:
    """Skip, or fail, where KVM cannot be used. A fixture that opens /dev/kvm asks for it, and so gets the mark."""
    _require_kvm(pytestconfig)


@pytest.fixture
def pykvm_guests(request: pytest.FixtureRequest, pykvm_needs_kvm: None) -> Iterator[Guests]:
    """The machines of this test, all closed at its end."""
    from pykvm.testing.guest import Guests

    with Guests(_get_assembler(request.config)) as guests:
        request.node.stash[_guests] = guests
        yield guests


@pytest.fixture
def machine(pykvm_guests: Guests) -> Callable[..., WatchedMachine]:
    """Make machines: ``machine(memory="16M", irqchip="kernel")``, with the arguments of ``pykvm.Machine``."""
    return pykvm_guests.machine


@pytest.fixture
def guest(pykvm_guests: Guests) -> Guests:
    """Assemble a snippet and run it: ``guest("hlt", mode="real").registers``. See ``pykvm.testing.Guests``."""
    return pykvm_guests


@pytest.fixture
def real_mode(pykvm_guests: Guests) -> Callable[..., GuestResult]:
    """Run a snippet in 16-bit real mode, as ``guest`` does."""
    return functools.partial(pykvm_guests, mode="real")


@pytest.fixture
def protected_mode(pykvm_guests: Guests) -> Callable[..., GuestResult]:
    """Run a snippet in 32-bit protected mode without paging, as ``guest`` does."""
    return functools.partial(pykvm_guests, mode="protected")


@pytest.fixture
def long_mode(pykvm_guests: Guests) -> Callable[..., GuestResult]:
    """Run a snippet in 64-bit long mode, as ``guest`` does."""
    return functools.partial(pykvm_guests, mode="long")


@pytest.fixture
def serial() -> LoneSerial:
    """A serial port without a machine, its far end in the test's hands: ``serial.type(b"x")``, ``serial.text``."""
    from pykvm.testing.farend import LoneSerial

    return LoneSerial()


@pytest.fixture
def scripted_vcpu() -> Callable[..., ScriptResult]:
    """Test devices with a list of exits, without KVM: ``scripted_vcpu([IoIn(0x500)], pio={0x500: (Dice(), 2)})``.

    See ``pykvm.testing.run_script``, which this is.
    """
    from pykvm.testing.scripted import run_script

    return run_script


@pytest.fixture
def replay(request: pytest.FixtureRequest) -> Callable[..., ReplayResult]:
    """Replay a recording on the devices of today, without KVM: ``replay("boot.jsonl")``, beside the test's file.

    An answer that is not as recorded fails the test. The other arguments are those of ``pykvm.testing.replay``.
    """
    from pykvm import observe

    def run(recording: Recording | str | Path, *args: object, **options: object) -> ReplayResult:
        __tracebackhide__ = True
        if not isinstance(recording, observe.Recording):
            recording = request.path.parent / recording
        result = observe.replay(recording, *args, **options)  # type: ignore[arg-type]
        if result.divergence is not None:
            raise AssertionError(str(result.divergence)) from result.divergence.error
        return result

    return run


# ---- inside ----


def _fixtures_of(item: pytest.Item) -> Sequence[str]:
    names: Sequence[str] = getattr(item, "fixturenames", ())  # other plugins' items have none
    return names


def _get_assembler(config: pytest.Config) -> Assembler:
    if _assembler not in config.stash:
        from pykvm.testing.assembly import Assembler

        cache = getattr(config, "cache", None)  # there is none with -p no:cacheprovider
        config.stash[_assembler] = Assembler(None if cache is None else cache.mkdir(CACHE))
    return config.stash[_assembler]


def _require_kvm(config: pytest.Config) -> None:
    if _why_no_kvm not in config.stash:
        config.stash[_why_no_kvm] = _ask_for_kvm()
    reason = config.stash[_why_no_kvm]
    if not reason:
        return
    if config.getoption("--require-kvm"):
        pytest.fail(f"--require-kvm, but KVM cannot be used: {reason}", pytrace=False)
    if os.environ.get("PYKVM_REQUIRE_KVM") == "1":
        pytest.fail(f"PYKVM_REQUIRE_KVM=1, but KVM cannot be used: {reason}", pytrace=False)
    pytest.skip(reason)


def _ask_for_kvm() -> str:
    """Return why KVM cannot be used here, or an empty string."""
    from pykvm.errors import KvmUnavailableError
    from pykvm.kvm import Kvm

    try:
        Kvm.open().close()
    except KvmUnavailableError as error:
        return str(error)
    return ""


def _detect_leaks(item: pytest.Item) -> None:
    # Only where there is something to leak: other projects' tests do not pay for the import.
    uses_pykvm = "pykvm.kvm" in sys.modules or NEEDS_KVM in _fixtures_of(item)
    if uses_pykvm and _detector not in item.config.stash:
        from pykvm.testing.leaks import LeakDetector

        item.config.stash[_detector] = LeakDetector().__enter__()


def _to_seconds(setting: str) -> float | None:
    if not setting:
        return None
    try:
        return max(0.0, float(setting))
    except ValueError:
        raise pytest.UsageError(f"pykvm_timeout is a number of seconds, not {setting!r}") from None


def _seconds(item: pytest.Item) -> float:
    """Return how long ``item`` may take, 0 for no limit: by its mark, else the setting, else for the kit's users."""
    for mark in item.iter_markers("kvm"):  # the closest first
        if mark.kwargs.get("timeout") is not None:
            return float(mark.kwargs["timeout"])
    setting = item.config.stash[_setting]
    if setting is not None:
        return setting
    uses_kit = item.get_closest_marker("kvm") is not None or FIXTURES & set(_fixtures_of(item))
    return TIME_LIMIT if uses_kit else 0


@contextmanager
def _time_limit(item: pytest.Item) -> Iterator[None]:
    """Fail ``item`` when it takes too long, wherever it hangs: a signal also gets a vCPU out of its guest."""
    seconds = _seconds(item)
    is_taken = signal.getitimer(signal.ITIMER_REAL)[0] > 0  # by another plugin that limits time
    if not seconds or is_taken or threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"{item.nodeid} took longer than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
