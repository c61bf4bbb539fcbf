"""The pytest plugin from outside: projects of a few lines, and what pytest makes of them."""

from __future__ import annotations

import pytest

import pykvm.machine  # noqa: F401 (loaded here, for pytester forgets what a project's tests load first)

pytest_plugins = ["pytester"]

NO_KVM = """
from pykvm.errors import KvmUnavailableError
from pykvm.kvm import Kvm

def unavailable(path="/dev/kvm", log=None):
    raise KvmUnavailableError("/dev/kvm is on holiday", "wait for it")

Kvm.open = unavailable
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project that has pykvm installed, and nothing else; what is asked of this suite is not asked of it."""
    for name in ("PYKVM_REQUIRE_KVM", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    pytester.makeini("[pytest]\naddopts = --strict-markers -rs\n")
    return pytester


def run(project: pytest.Pytester, code: str, *options: str) -> pytest.RunResult:
    """Run the tests in ``code`` in this process."""
    project.makepyfile(code)
    return project.runpytest_inprocess(*options)


def run_apart(project: pytest.Pytester, code: str, *options: str) -> pytest.RunResult:
    """Run the tests in ``code`` in a process of their own, which has signals of its own."""
    project.makepyfile(code)
    return project.runpytest_subprocess(*options, timeout=50)


# ---- fixtures ----


def test_the_fixtures_run_guests(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
        from pykvm import Machine
        from pykvm.kvm import Hlt, IoOut
        from pykvm.testing import ANY

        def test_exit_code(guest):
            assert guest("mov $42, %al; out %al, $0xf4").exit_code == 85

        def test_exits_as_the_manual_has_them(guest):
            result = guest('''
                mov $0x3f8, %dx
                mov $'H', %al
                out %al, %dx
                out %al, $0x80
                hlt
            ''', mode="real")
            assert result.serial.text == "H"
            result.assert_exits([IoOut(port=0x3f8, data=b"H"), ANY, Hlt()])

        def test_modes(real_mode, protected_mode, long_mode):
            assert real_mode("hlt").sregs.cr0 & 1 == 0
            assert protected_mode("hlt").sregs.cr0 & 0x80000001 == 1
            assert long_mode("mov $1, %rax; hlt").registers.rax == 1

        def test_machine(machine):
            one, other = machine("1M"), machine(memory="2M", irqchip="user")
            assert isinstance(one, Machine)
            one.load(b"\\xf4")
            assert str(one.run().stop).startswith("halted")

        def test_serial(serial):
            serial.write(0, b"x")
            assert serial.text == "x"
        """,
    )
    result.assert_outcomes(passed=5)


def test_devices_are_tested_and_recordings_replayed_without_kvm(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
        import pytest
        from pykvm import Machine, assemble
        from pykvm.kvm import IoIn, IoOut
        from pykvm.testing import Recorder

        class Register:
            name = "register"
            value = b"\\0"
            def read(self, offset, size): return self.value
            def write(self, offset, data): self.value = data

        class Stuck(Register):
            def write(self, offset, data): pass

        SCRIPT = [IoOut(0x500, data=b"x"), IoIn(0x500)]

        def test_script(scripted_vcpu):
            assert scripted_vcpu(SCRIPT, pio={0x500: (Register(), 1)}).replies == (b"x",)

        def test_record(machine, request):
            recorder = Recorder(request.path.parent / "it.jsonl")
            recorded = machine("1M", observers=[recorder])
            recorded.pio.register(Register(), 0x500, 1)
            recorded.load(assemble("mov $0x500, %dx; mov $'x', %al; out %al, %dx; in %dx, %al; hlt", mode="real"))
            recorded.run()
            recorder.close()

        def test_replay(replay):
            assert replay("it.jsonl", lambda bench: bench.pio.register(Register(), 0x500, 1)).exits == 3
            with pytest.raises(AssertionError, match="register"):
                replay("it.jsonl", lambda bench: bench.pio.register(Stuck(), 0x500, 1))
        """,
    )
    result.assert_outcomes(passed=3)


def test_machines_are_closed_after_each_test(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
        made = []

        def test_makes(machine, guest):
            made.extend([machine("1M"), guest("hlt").machine])
            assert not any(one.closed for one in made)

        def test_looks():
            assert [one.closed for one in made] == [True, True]
        """,
    )
    result.assert_outcomes(passed=2)


def test_a_snippet_is_kept_in_pytests_cache(project: pytest.Pytester) -> None:
    code = "def test_it(guest): guest('hlt')"
    run(project, code).assert_outcomes(passed=1)
    (kept,) = (project.path / ".pytest_cache" / "d" / "pykvm-guests").iterdir()
    before = kept.stat().st_mtime_ns
    run(project, code).assert_outcomes(passed=1)
    assert kept.stat().st_mtime_ns == before
    run(project, code, "-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_the_plugin_works_under_xdist(project: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    code = """
        import pytest

        @pytest.mark.parametrize("number", range(8))
        def test_it(guest, number):
            assert guest(f"mov ${number % 2}, %al; out %al, $0xf4").exit_code == number % 2 * 2 + 1

        def test_fails(guest):
            assert guest("mov $'x', %al; mov $0x3f8, %dx; out %al, %dx; hlt").exit_code == 1
    """
    result = run_apart(project, code, "-n", "2")
    result.assert_outcomes(passed=8, failed=1)
    result.stdout.fnmatch_lines(["*machine: last exits*", "*io out 0x3f8 'x'*", "*machine: serial port*", "x"])
    assert len(list((project.path / ".pytest_cache" / "d" / "pykvm-guests").iterdir())) == 3


# ---- the mark ----


MARKED = """
import pytest

def test_fixture(guest): pass
def test_indirectly(my_machine): pass
@pytest.fixture
def my_machine(machine): return machine()
@pytest.mark.kvm
def test_marked(): pass
def test_free(serial): pass
"""


def test_tests_that_use_a_vm_have_the_mark(project: pytest.Pytester) -> None:
    result = run(project, MARKED, "-m", "kvm", "-v")
    result.assert_outcomes(passed=3, deselected=1)


def test_a_fixture_of_the_same_name_that_uses_no_vm_has_no_mark(project: pytest.Pytester) -> None:
    code = """
        import pytest

        @pytest.fixture
        def machine(): return "a lathe"

        def test_it(machine): assert machine == "a lathe"
    """
    run(project, code, "-m", "kvm").assert_outcomes(deselected=1)


def test_without_kvm_marked_tests_skip_with_the_reason(project: pytest.Pytester) -> None:
    project.makeconftest(NO_KVM)
    result = run_apart(project, MARKED)
    result.assert_outcomes(passed=1, skipped=3)
    result.stdout.fnmatch_lines(["*SKIPPED*/dev/kvm is on holiday*", "*wait for it*"])


@pytest.mark.parametrize("how", ["option", "variable"])
def test_without_kvm_marked_tests_fail_if_it_is_required(
    project: pytest.Pytester, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "variable":
        monkeypatch.setenv("PYKVM_REQUIRE_KVM", "1")
    project.makeconftest(NO_KVM)
    result = run_apart(project, MARKED, *(["--require-kvm"] if how == "option" else []))
    result.assert_outcomes(passed=1, errors=3)
    result.stdout.fnmatch_lines(["*KVM cannot be used: /dev/kvm is on holiday"])


# ---- time limits ----


def test_a_guest_that_never_ends_fails_its_test_and_the_next_one_runs(project: pytest.Pytester) -> None:
    result = run_apart(
        project,
        """
        import pytest

        def test_runs(guest):
            guest("hlt")

        @pytest.mark.kvm(timeout=2)
        def test_hangs(guest):
            guest("jmp .", timeout=None)

        def test_runs_after_it(guest):
            guest("hlt")
        """,
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*test_hangs took longer than 2 seconds*", "*> 0x100000  eb fe  jmp*:8"])


def test_the_setting_limits_every_test_and_every_fixture(project: pytest.Pytester) -> None:
    result = run_apart(
        project,
        """
        import threading
        import pytest

        @pytest.fixture
        def slow():
            threading.Event().wait()

        @pytest.fixture
        def slow_to_go():
            yield
            threading.Event().wait()

        def test_hangs(): threading.Event().wait()
        def test_never_begins(slow): pass
        def test_never_ends(slow_to_go): pass
        @pytest.mark.kvm(timeout=0)
        def test_may_take_long(): threading.Event().wait(1.5)
        """,
        "-o",
        "pykvm_timeout=1",
    )
    result.assert_outcomes(passed=2, failed=1, errors=2)


def test_a_setting_that_is_no_time_is_refused(project: pytest.Pytester) -> None:
    result = run(project, "def test_it(): pass", "-o", "pykvm_timeout=soon")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*pykvm_timeout is a number of seconds, not 'soon'"])


# ---- what a failure shows ----


def test_a_failing_test_shows_what_its_guest_was_doing(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
        def test_it(guest):
            result = guest('''
                mov $0x3f8, %dx
                mov $'H', %al
                out %al, %dx
                movb $'S', 0xb8000
                hlt
            ''', mode="protected")
            assert result.exit_code == 1
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*machine: how it ended*",
            "halted: HLT, and nothing can wake this CPU",
            "*machine: last exits*",
            "   0  io out 0x3f8 'H'",
            "   1  hlt",
            "*machine: registers*",
            "rip 0x10000f *",
            "*machine: code around RIP*",
            "* hlt *test_a_failing_test_shows_what_its_guest_was_doing.py:7",
            "> 0x10000f *",
            "*machine: serial port*",
            "H",
            "*machine: screen*",
            "S",
        ]
    )


def test_a_crash_is_explained_at_the_tests_own_line(project: pytest.Pytester) -> None:
    result = run(
        project, 'def test_it(guest):\n    assert guest("""\n        nop\n        ud2\n    """).exit_code == 1\n'
    )
    result.stdout.fnmatch_lines(
        [
            "the guest crashed: KVM_EXIT_SHUTDOWN *",
            "*likely cause*no IDT was loaded*",
            "*where*ud2*test_a_crash_is_explained_at_the_tests_own_line.py:4",
            "> *ud2*.py:4",
        ]
    )


def test_several_machines_are_told_apart(project: pytest.Pytester) -> None:
    result = run(project, "def test_it(guest):\n    guest('hlt')\n    guest('nop; hlt')\n    assert False\n")
    result.stdout.fnmatch_lines(["*machine 0: last exits*", "*machine 1: last exits*"])


def test_a_passing_test_shows_nothing(project: pytest.Pytester) -> None:
    result = run(project, "def test_it(guest):\n    guest('hlt')\n", "-rA")
    result.stdout.no_fnmatch_line("*last exits*")


def test_comparing_exits_tells_the_first_difference(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
        from pykvm.kvm import Hlt, IoOut

        def test_it(guest):
            result = guest("mov $'a', %al; out %al, $0x80; hlt")
            assert result.exits() == [IoOut(port=0x80, data=b"b"), Hlt()]
        """,
    )
    result.stdout.fnmatch_lines(
        [
            "E *assert the exits differ",
            "E *the first difference is exit 0 (of 2): io out 0x80 'a', where io out 0x80 'b' is expected",
            "E *data is b'a' instead of b'b'",
        ]
    )


def test_an_assembler_error_points_at_the_test(project: pytest.Pytester) -> None:
    result = run(project, 'def test_it(guest):\n    guest("""\n        nop\n        bogus\n    """)\n')
    result.stdout.fnmatch_lines(["E *points_at_the_test.py:4: Error: no such instruction: `bogus'"])
    result.stdout.no_fnmatch_line("*pykvm/testing/*")


# ---- leaks ----


def test_what_a_test_never_closes_is_named(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
        from pykvm import GuestMemory, Kvm, Machine
        kept = []

        def test_machine(): Machine("1M")
        def test_memory(): kept.append(GuestMemory("1M"))
        def test_dropped_descriptor(): Kvm.open()
        def test_kept_descriptors():
            kvm = Kvm.open()
            kept.extend([kvm, kvm.create_vm()])
        def test_closes():
            with Machine("1M"), Kvm.open() as kvm, kvm.create_vm() as vm, vm.create_vcpu(), GuestMemory("1M"):
                pass
        def test_memory_that_is_dropped(): GuestMemory("1M")
        """,
    )
    result.assert_outcomes(passed=6, errors=4)
    result.stdout.fnmatch_lines(
        [
            "*::test_machine never closed:",
            "  a machine, made at *test_what_a_test_never_closes_is_named.py:4",
            "*::test_memory never closed:",
            "  guest memory of 1 MiB, made at *:5",
            "*::test_dropped_descriptor never closed:",
            "  /dev/kvm was never closed",
            "*::test_kept_descriptors never closed:",
            "  /dev/kvm, made at *:8",
            "  the VM, made at *:9",
        ]
    )


def test_what_leaked_is_closed_before_the_next_test(project: pytest.Pytester) -> None:
    code = """
        from pykvm import Machine
        kept = []
        def test_leaks(): kept.append(Machine("1M"))
        def test_looks(): assert kept[0].closed
    """
    run(project, code).assert_outcomes(passed=2, errors=1)


def test_a_fixture_of_a_wider_scope_does_not_leak(project: pytest.Pytester) -> None:
    code = """
        import pytest
        from pykvm import Machine

        @pytest.fixture(scope="module")
        def shared():
            with Machine("1M") as machine:
                yield machine

        def test_one(shared): assert not shared.closed
        def test_other(shared): assert not shared.closed
    """
    run(project, code).assert_outcomes(passed=2)


def test_a_failing_test_is_not_blamed_for_leaks_too(project: pytest.Pytester) -> None:
    code = """
        from pykvm import Machine

        def test_it():
            machine = Machine("1M")
            assert False
    """
    run(project, code).assert_outcomes(failed=1)


def test_projects_that_do_not_use_pykvm_load_none_of_it(project: pytest.Pytester) -> None:
    code = """
        import sys

        def test_it():
            assert not {"pykvm.kvm", "pykvm.machine", "pykvm.testing.guest", "capstone"} & set(sys.modules)
    """
    run_apart(project, code).assert_outcomes(passed=1)
