"""Assist: instructions that this host's KVM cannot emulate are finished in user space, as the CPU would have."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path

import pytest

from pykvm import Machine, assemble
from pykvm.boot import BootOptions, Image, open_image
from pykvm.cli.main import main
from pykvm.errors import ConfigurationError
from pykvm.kvm import Fpu
from pykvm.machine import Crashed, Halted, Stopped
from pykvm.observe.stepping import Stepper
from pykvm.probes import probe
from pykvm.testing import Guests
from pykvm.units import Gpa
from pykvm.x86 import Cr0, Cr4, HardwareBreakpoint

RESULT = Gpa(0x20_0000)
END = Gpa(0xD800_0000)  # where nobody is: writing there ends a program, in any ring
SSE_ON = "mov %cr4, %rax; or $0x600, %rax; mov %rax, %cr4"
SIMD = """
        .globl  _start
_start: mov     $0x200000, %edi
        lea     numbers(%rip), %rsi
        movups  (%rsi), %xmm0
        movups  16(%rsi), %xmm9
        addps   %xmm9, %xmm0
        mulps   %xmm0, %xmm9
        cvttps2dq %xmm9, %xmm3
        movups  %xmm0, (%rdi)
        movups  %xmm3, 16(%rdi)
        fldpi
        fld1
        faddp
        fsqrt
        fstpl   32(%rdi)
        movabs  $0x123456789abcdef0, %rax
        popcnt  %rax, %rbx
        mov     %rbx, 48(%rdi)
        mov     $1, %eax
        xor     %edx, %edx
        mov     $7, %ebx
        mov     $8, %ecx
        lock cmpxchg16b pair(%rip)
        setz    56(%rdi)
        mov     pair(%rip), %rax
        mov     %rax, 64(%rdi)
        mov     $0xd8000000, %eax
        mov     %al, (%rax)
        hlt
        .balign 16
numbers: .float 1.5, 2.25, -3, 1e10, 4, 0.5, 7, -1e-5
pair:   .quad   1, 0
"""


class End:
    """Ends the run at the first write to it."""

    name = "the end"

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        self._stop()


def compute(source: str, ring: int, *, assist: bool) -> tuple[bytes, int]:
    """Run ``source`` with SSE switched on; return what it wrote at RESULT, and how many repairs there were."""
    with Machine("16M", assist=assist) as machine:
        machine.mmio.register(End(machine.stop), END, 1)
        machine.load(assemble(source, mode="long"), ring=ring)
        sregs = machine.vcpu.get_sregs()
        sregs.cr4 |= (Cr4.OSFXSR | Cr4.OSXMMEXCPT).value
        sregs.cr0 |= Cr0.MP.value
        machine.vcpu.set_sregs(sregs)
        machine.vcpu.set_fpu(Fpu(fcw=0x37F, mxcsr=0x1F80))
        result = machine.run()
        assert result.stop == Stopped(), result.report
        repairs = 0 if machine.assist is None else sum(machine.assist.repairs.values())
        return machine.memory.read(RESULT, 128), repairs


def test_ring_0_computes_what_ring_3_computes_on_the_cpu_itself() -> None:
    native, _ = compute(SIMD, 3, assist=False)
    assisted, repairs = compute(SIMD, 0, assist=True)
    assert assisted == native
    lacks = ("sse-ring0", "x87-ring0", "popcnt-ring0", "cmpxchg16b-ring0")
    assert (repairs > 0) is not all(probe(name).works for name in lacks)
    assert native[48] == bin(0x123456789ABCDEF0).count("1")
    assert (native[56], native[64]) == (1, 7)


IDT = """
        .globl  _start
_start: mov     $0x80000, %esp
        lea     handler(%rip), %rax
        mov     $0x2000, %ebx
        mov     $256, %ecx
1:      mov     %ax, (%rbx)             # a gate for every vector
        movw    $0x08, 2(%rbx)
        movw    $0x8e00, 4(%rbx)
        mov     %rax, %rdx
        shr     $16, %rdx
        mov     %edx, 6(%rbx)
        movl    $0, 10(%rbx)
        add     $16, %rbx
        dec     %ecx
        jnz     1b
        lidt    idtr(%rip)
        {code}
after:  hlt
handler: mov    (%rsp), %rax            # RIP, or the error code
        mov     8(%rsp), %rbx
        mov     %cr2, %rcx
        hlt
idtr:   .word   4095
        .quad   0x2000
"""


@pytest.mark.parametrize("code", ["int3", "int $0x80"])
def test_a_software_interrupt_reaches_its_handler_with_rip_past_it(guest: Guests, code: str) -> None:
    result = guest(IDT.format(code=code), mode="long", memory="16M", assist=True)
    (after,) = [
        symbol.address for symbol in assemble(IDT.format(code=code), mode="long").symbols if symbol.name == "after"
    ]
    assert (result.registers.rax, result.registers.rbx) == (after, 0x08)


def test_a_page_fault_of_an_assisted_instruction_is_the_guests_own(guest: Guests) -> None:
    code = f"{SSE_ON}; movabs $0x123400000000, %rdi; movntps %xmm0, (%rdi)"
    result = guest(IDT.format(code=code), mode="long", memory="16M", assist=True)
    assert result.registers.rcx == 0x1234_0000_0000
    assert result.registers.rax == 2  # a write to a page that is not there


def test_assist_writes_are_seen_by_snapshots() -> None:
    with Machine("16M", assist=True) as machine:
        machine.load(
            assemble(
                f"{SSE_ON}; mov $0x200000, %edi; pcmpeqd %xmm0, %xmm0; movups %xmm0, (%rdi); hlt",
                mode="long",
            )
        )
        before = machine.snapshot()
        machine.run()
        assert machine.memory.read(RESULT, 16) == b"\xff" * 16
        machine.restore(before)
        assert machine.memory.read(RESULT, 16) == bytes(16)


def test_what_nobody_can_finish_is_refused_in_words(guest: Guests) -> None:
    # A hole is read as all ones by KVM's emulator; SSE there is beyond Unicorn, which sees RAM only.
    code = f"{SSE_ON}; mov $0xd0000000, %edi; addps (%rdi), %xmm0; hlt"
    result = guest(code, mode="long", memory="16M", assist=True)
    assert isinstance(result.stop, Crashed)
    assert "assist         Unicorn cannot execute addps here" in result.report


def test_without_assist_the_report_suggests_it(guest: Guests) -> None:
    result = guest(f"{SSE_ON}; addps %xmm0, %xmm0; hlt", mode="long")
    if probe("sse-ring0").works:
        assert result.stop == Halted()
    else:
        assert isinstance(result.stop, Crashed)
        assert "--assist finishes such instructions" in " ".join(result.report.split())


SYSCALL = """
        .globl  _start
_start: mov     $0x80000, %esp
        mov     %cr3, %rax              # ring 3 gets the 2 MiB from 0x200000 on, and no others
        orq     $4, (%rax)
        mov     (%rax), %rbx
        and     $~0xfff, %rbx
        orq     $4, (%rbx)
        mov     (%rbx), %rbx
        and     $~0xfff, %rbx
        orq     $4, 8(%rbx)
        mov     %rax, %cr3
        movw    $0x050f, 0x200000       # syscall
        lea     fault(%rip), %rax       # the gate of #PF
        mov     $0x20e0, %ebx
        mov     %ax, (%rbx)
        movw    $0x08, 2(%rbx)
        movw    $0x8e00, 4(%rbx)
        shr     $16, %rax
        mov     %rax, 6(%rbx)
        lidt    idtr(%rip)
        mov     $0xc0000080, %ecx       # EFER.SCE
        rdmsr
        or      $1, %eax
        wrmsr
        mov     $0xc0000081, %ecx       # STAR
        xor     %eax, %eax
        mov     $0x00180008, %edx
        wrmsr
        inc     %ecx                    # LSTAR
        lea     entry(%rip), %rax
        xor     %edx, %edx
        wrmsr
        hlt
        push    $0x23
        push    $0x300000
        push    $2
        push    $0x2b
        push    $0x200000
        iretq
entry:  mov     $0x5ca11, %eax
        hlt
fault:  mov     $0xbad, %eax
        hlt
idtr:   .word   4095
        .quad   0x2000
"""


@pytest.mark.parametrize("is_debugged_between", [False, True])
def test_syscall_enters_the_kernel_also_after_somebody_had_the_breakpoints(is_debugged_between: bool) -> None:
    with Machine("16M", assist=True) as machine:
        machine.load(assemble(SYSCALL, mode="long"))
        machine.run()
        if is_debugged_between:
            machine.debug(HardwareBreakpoint(0x1234))
            machine.debug()
        result = machine.run()
    assert (result.registers.rax, result.registers.rcx) == (0x5CA11, 0x20_0002)
    assert (result.sregs.cs.dpl, result.sregs.cs.selector, result.sregs.ss.selector) == (0, 0x08, 0x10)
    assert result.registers.rsp == 0x30_0000


def test_syscall_is_repaired_after_the_guest_was_stepped() -> None:
    with Machine("16M", assist=True) as machine:
        machine.load(assemble(SYSCALL, mode="long"))
        machine.run()
        with Stepper(machine) as stepper:
            stepper.step()
        assert machine.run().registers.rax == 0x5CA11


def test_assist_without_unicorn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: object) -> object:
        if name.startswith("unicorn"):
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigurationError, match=r"pykvm-hypervisor\[assist\]"):
        Machine("1M", assist=True)


# ---- Linux ----

LINUX = Path(__file__).parents[3] / "shared" / "linux"
COMMAND_LINE = "console=ttyS0 rodata=off tsc_early_khz=2596000 clearcpuid=smap,xsave,popcnt quiet"


@pytest.fixture
def linux(tmp_path: Path) -> Callable[[str, str], Image]:
    """Return what opens the small kernel by a format, with an initrd."""
    import lzma

    if not LINUX.exists():
        pytest.skip(f"there is no {LINUX.name} beside the project's folder: a small kernel for tests")
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(lzma.decompress((LINUX / "vmlinux.xz").read_bytes()))

    def open_kernel(format: str, initrd: str) -> Image:
        data = (LINUX / initrd).read_bytes()
        data = lzma.decompress(data) if initrd.endswith(".xz") else data
        return open_image(kernel, format=format, options=BootOptions(COMMAND_LINE, data))

    return open_kernel


@pytest.mark.kvm(timeout=120)
@pytest.mark.parametrize("format", ["vmlinux", "pvh"])
def test_linux_reaches_user_space_and_reboots(linux: Callable[[str, str], Image], format: str) -> None:
    with Machine("64M", irqchip="kernel", assist=True) as machine:
        machine.load(linux(format, "hello.cpio"))
        result = machine.run(timeout=100)
    assert "HELLO FROM USERSPACE" in result.serial.text
    assert result.status == 0


@pytest.mark.kvm(timeout=150)
def test_a_shell_under_linux_answers(linux: Callable[[str, str], Image]) -> None:
    said = bytearray()
    script = [b"echo $((6 * 7))-$(uname -r)\n", b"busybox reboot -f\n"]

    def on_output(data: bytes) -> None:
        said.extend(data)
        if said.count(b"/ # ") > 2 - len(script) and script:
            typed.append(script.pop(0))

    typed: list[bytes] = []

    def on_input(size: int) -> bytes:
        if not typed:
            return b""
        first, typed[0] = typed[0][:size], typed[0][size:]
        if not typed[0]:
            typed.pop(0)
        return first

    with Machine("64M", irqchip="kernel", assist=True, serial_output=on_output, serial_input=on_input) as machine:
        machine.load(linux("vmlinux", "busybox.cpio.xz"))
        result = machine.run(timeout=120)
    assert b"42-6.1." in said
    assert result.status == 0


def test_the_command_line_assists(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "guest.S"
    source.write_text(f"{SSE_ON}; addps %xmm0, %xmm0; popcnt %rax, %rax; mov $5, %al; out %al, $0xf4")
    assert main(["run", str(source), "--assist"]) == 11


def test_a_guest_is_stepped_and_traced_with_assist_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "guest.S"
    source.write_text(f"{SSE_ON}; addps %xmm0, %xmm0; popcnt %rax, %rax; mov $5, %al; out %al, $0xf4")
    assert main(["step", str(source), "--batch", "--assist"]) == 11
    stepped = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert [line[4] for line in stepped] == ["movq", "orq", "movq", "addps", "popcntq", "movb", "outb"]
    assert main(["trace", str(source), "--assist"]) == 11
