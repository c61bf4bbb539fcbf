"""The gdb stub with gdb itself: what somebody sees who debugs a guest. Expected is behaviour, and not its wording."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pykvm.probes import probe

GDB = shutil.which("gdb")
PYKVM = f"{shlex.quote(sys.executable)} -m pykvm.cli.main"
pytestmark = pytest.mark.skipif(GDB is None and "CI" not in os.environ, reason="there is no gdb: apt-get install gdb")

TIMEOUT = 60
# gdb would say that fetching a file from afar is slow, and would end at the first error.
QUIET = ["-nx", "-batch", "-iex", "set sysroot target:", "-iex", "set confirm off"]

REAL = """
        .code16
        .globl  _start
_start: ljmp    $0x900, $far - 0x9000
        .org    0x1000
far:    mov     $0x1234, %ax
        push    %ax
        inc     %ax
end:    mov     $42, %al
        out     %al, $0xf4
"""

READS_ITS_OWN_CODE = """
        .code64
        .globl  _start
_start: mov     $2, %ecx
again:  mov     watched, %al
watched:
        nop
        dec     %ecx
        jnz     again
        out     %al, $0xf4
"""

STORES = """
        .code64
        .globl  _start
_start: movl    $7, cell
        nop
        mov     cell, %eax
        nop
        movl    $8, cell
        nop
        hlt
        .bss
        .globl  cell
cell:   .skip   4
"""

LOOP = """
        .code64
        .globl  _start
_start: inc     %rbx
        jmp     _start
"""


def gdb(target: str, *commands: str, options: str = "") -> str:
    """Debug ``target``: return what gdb prints, and the guest."""
    remote = f"target remote | {PYKVM} run {shlex.quote(target)} {options} --gdb -"
    arguments = [text for command in (remote, *commands) for text in ("-ex", command)]
    ran = subprocess.run(
        [GDB or "gdb", *QUIET, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return ran.stdout


def source(folder: Path, text: str) -> str:
    path = folder / "guest.S"
    path.write_text(text)
    return str(path)


def prints(output: str) -> list[str]:
    """Return what "p" and "output" showed, in their order."""
    return re.findall(r"^\$\d+ = (.*)$", output, re.MULTILINE)


# ---- modes ----


def test_real_mode_by_linear_addresses(tmp_path: Path) -> None:
    output = gdb(
        source(tmp_path, REAL),
        *("set architecture i8086", "x/i $pc", "break far", "c", "x/3i $pc", "p/x $pc", "p/x $cs", "p/x $cs_base"),
        *("stepi", "p/x $ax", "stepi", "x/xh $ss_base + $sp", "break *0x9005", "c", "p/x $pc", "c"),
    )
    assert re.search(r"=> 0x8000 <_start>:\s+ljmp +\$0x900,\$0x0", output)
    assert "Breakpoint 1, far ()" in output
    assert re.search(r"=> 0x9000 <far>:\s+mov +\$0x1234,%ax\n.*push +%ax\n.*inc +%ax", output)
    assert prints(output) == ["0x9000", "0x900", "0x9000", "0x1234", "0x9005"]
    assert re.search(r"0x[0-9a-f]+:\s+0x1234", output)
    assert "exited with code 0125" in output  # (42 << 1 | 1) in octal


def test_from_real_to_protected_mode() -> None:
    output = gdb(
        "06-protected-mode",
        *(
            "set architecture i8086",
            "x/i $pc",
            "break protected",
            "c",
            "set architecture i386",
            "x/i $pc",
            "p/x $cs",
            "p $cr0",
            "c",
        ),
    )
    assert "pykvm: CPU 0 is in protected mode now: 'set architecture i386'" in output
    assert re.search(r"=> .*<protected>:", output)
    assert "PE" in prints(output)[1]
    assert "exited normally" in output


def test_the_registers_of_long_mode() -> None:
    output = gdb(
        "09-hello",
        *("p $cr0", "p $efer", "p/x $cs", "p $gdt_limit > 0", "p $tr", "p $mxcsr", "p $fctrl", "p $ftag"),
        *("set $rax = 0x1122334455667788", "p/x $eax", "p/x $ah"),
        *("set $xmm3.v4_int32[1] = 7", "p $xmm3.v4_int32", "set $st0 = 1.5", "p $st0"),
        *("set $eflags = $eflags | 1", "p $eflags", "info registers"),
    )
    shown = prints(output)
    assert {"PG", "PE"} <= set(shown[0].split())
    assert {"LMA", "LME"} <= set(shown[1].split())
    assert shown[2:4] == ["0x8", "1"]
    assert shown[6:8] == ["895", "65535"]
    assert shown[8:12] == ["0x55667788", "0x77", "{0, 7, 0, 0}", "1.5"]
    assert "CF" in shown[12].split()
    assert re.search(r"^rip +0x100000", output, re.MULTILINE)


def test_what_a_register_cannot_be_is_said() -> None:
    output = gdb("09-hello", "set $cs = 0x33", "set $efer = 0L", "p/x $cs", "p $efer", "c")
    assert "in long mode cs is loaded with a descriptor: let the guest do it" in output
    assert re.search(r"KVM_SET_SREGS.*L is set while EFER.LMA is clear", output)
    assert prints(output)[0] == "0x8"
    assert {"LME", "LMA"} <= set(prints(output)[1].split())
    assert "exited" in output


def test_a_change_of_registers_and_memory_is_the_guests(tmp_path: Path) -> None:
    path = source(
        tmp_path, ".code64\n.globl _start\n_start: mov cell, %al\nadd %bl, %al\nout %al, $0xf4\ncell: .byte 1"
    )
    output = gdb(path, "set {char} &cell = 5", "set $rbx = 10", "stepi", "set $pc = $pc", "p cell", "c")
    assert "exited with code 037" in output  # ((5 + 10) << 1 | 1) in octal


def test_memory_that_is_none_and_devices_are_not_touched() -> None:
    output = gdb(
        "09-hello", "x/x 0xfee00000", "x/x 0x7fffffffffff", "x/x 0x800000000000", "set {int} 0xfee00000 = 1", "c"
    )
    assert output.count("Cannot access memory at address") == 4
    assert "exited" in output


# ---- C ----


def test_a_kernel_in_c_line_by_line() -> None:
    output = gdb(
        "14-c-kernel",
        *("break put_decimal", "c", "p value", "bt", "next", "next", "p value", "up", "info symbol $pc"),
        *("delete", "c"),
    )
    assert prints(output) == ["50", "5"]  # once divided by 10
    assert re.search(r"#0 .*put_decimal \(value=50\).*\n#1 .*kernel_main \(\).*\n#2 .*_start \(\)", output)
    assert re.search(r"kernel_main.* in section .text", output)
    assert "exited with code 037" in output


def test_watchpoints_on_c_variables() -> None:
    output = gdb("14-c-kernel", "watch composite[4]", "c", "delete", "rwatch composite[4]", "c", "delete", "c")
    assert re.search(r"Hardware watchpoint 1: composite\[4\]", output)
    assert re.search(r"Old value = 0.*\n.*New value = 1", output)
    assert re.search(r"Hardware read watchpoint 2: composite\[4\]\n\nValue = 1", output)
    assert "exited with code 037" in output


# ---- breakpoints and watchpoints ----


def test_watchpoints_for_writes_reads_and_both(tmp_path: Path) -> None:
    path = source(tmp_path, STORES)
    stops = {}
    for command in ("watch", "rwatch", "awatch"):
        output = gdb(
            path, f"{command} *(int *) &cell", "c", "p/x $pc - (long) &_start", "c", "p/x $pc - (long) &_start", "c"
        )
        stops[command] = prints(output)
    write, read, again = "0xb", "0x13", "0x1f"
    assert stops["watch"][:2] == [write, again]
    assert stops["rwatch"][0] == read
    assert stops["awatch"][:2] == [write, read]


def test_more_breakpoints_than_the_cpu_has(tmp_path: Path) -> None:
    nops = "".join(f"at{n}: nop\n" for n in range(10))
    path = source(tmp_path, f".code64\n.globl _start\n_start: nop\n{nops}hlt")
    output = gdb(path, *(f"break at{n}" for n in range(10)), *["c"] * 11)
    assert re.findall(r"Breakpoint \d+, at(\d)", output) == [str(n) for n in range(10)]
    assert "exited normally" in output


@pytest.mark.parametrize("command", ["break", "hbreak"])
def test_the_guest_does_not_see_breakpoints(command: str, tmp_path: Path) -> None:
    output = gdb(source(tmp_path, READS_ITS_OWN_CODE), f"{command} watched", "c", "c", "c")
    assert len(re.findall(r"Breakpoint 1, ", output)) == 2
    assert f"exited with code 0{(0x90 << 1 | 1) & 0xFF:o}" in output


# ---- several CPUs ----


def test_cpus_are_threads() -> None:
    require("in-kernel APs", "19-second-cpu")
    output = gdb(
        "19-second-cpu",
        *(
            "info threads",
            "break *0x8000",
            "c",
            "info threads",
            "thread 1",
            "stepi",
            "thread 2",
            "stepi",
            "p/x $cs",
            "delete",
            "c",
        ),
    )
    assert re.search(r"1 +Thread 1 \(CPU 0: running\)", output)
    assert re.search(r"2 +Thread 2 \(CPU 1: waits for INIT\)", output)
    assert "Thread 2 hit Breakpoint 1" in output
    assert re.search(r"\* 2 +Thread 2 \(CPU 1: running\)", output)
    assert prints(output) == ["0x800"]
    assert "exited normally" in output


def require(what: str, guest: str) -> None:
    from pykvm.boot import find_guest

    found = find_guest(guest)
    assert found is not None
    for need in found.needs:
        if not probe(need).works:
            pytest.skip(f"{what}: probe {need}: {probe(need).detail}")


# ---- backwards ----


def test_back_by_instructions_and_by_breakpoints(tmp_path: Path) -> None:
    path = source(tmp_path, STORES)
    output = gdb(
        path,
        *("stepi 5", "p *(int *) &cell", "reverse-stepi", "p *(int *) &cell", "p $pc == (long) &_start + 0x14"),
        *("reverse-continue", "p $pc == (long) &_start", "p *(int *) &cell", "stepi 4"),
        *("break *((char *) &_start + 0xb)", "reverse-continue", "p $pc == (long) &_start + 0xb"),
    )
    shown = prints(output)
    assert shown[:2] == ["8", "7"]
    assert "No more reverse-execution history" in output
    assert shown[3:] == ["1", "0", "1"]


def test_a_stretch_at_full_speed_is_undone_as_one_unless_history_is_on(tmp_path: Path) -> None:
    path = source(tmp_path, STORES)
    for is_on, expected in (("off", "0"), ("on", "1")):
        output = gdb(
            path,
            f"monitor history {is_on}",
            *("break *((char *) &_start + 0x14)", "c", "reverse-stepi", "p $pc != (long) &_start"),
        )
        assert prints(output) == [expected]


# ---- the end ----


def test_a_crash_is_a_signal_first_and_can_be_undone() -> None:
    output = gdb("12-triple-fault", "stepi", "c", "x/i $pc", "reverse-stepi", "p $pc", "c", "c")
    assert "triple fault: #UD" in output
    assert "received signal SIGSEGV" in output
    assert re.search(r"=> .*ud2", output)
    assert "exited with code 0175" in output  # 125


def test_time_at_the_prompt_does_not_count(tmp_path: Path) -> None:
    path = source(tmp_path, LOOP)
    output = gdb(path, "shell sleep 0.4", "stepi", "shell sleep 0.4", "stepi", "p $rbx", "c", options="--timeout 0.3")
    assert prints(output) == ["1"]
    assert "exited with code 0174" in output  # 124


# ---- monitor ----


def test_monitor_commands() -> None:
    output = gdb(
        "14-c-kernel",
        *("monitor help", "monitor exits", "break kernel.c:72", "c", "monitor exits 2", "monitor walk 0x100000"),
        *("monitor walk 0x7fffffffffff", "monitor screen", "monitor exit", "monitor walk", "monitor walk x"),
        *("monitor reset", "maintenance flush register-cache", "p $pc == (long) &_start", "delete", "c"),
    )
    assert "monitor walk ADDRESS" in output
    assert "CPU 0 has had no exits yet" in output
    assert re.search(r"^io out 0x3f8 '.'$", output, re.MULTILINE)
    assert "0x100000 -> PML4[0]" in output
    assert "not mapped" in output
    assert "the screen is empty" in output
    assert "there is no monitor command 'exit'; did you mean exits" in output
    assert "it goes like this: monitor walk ADDRESS" in output
    assert "'x' is not a linear address" in output
    assert prints(output) == ["1"]
    assert output.count("Hello from C") == 2
