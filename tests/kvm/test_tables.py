"""Tables made by the host are the ones the CPU uses: our IDT for an exception, our TSS for a change of rings."""

from __future__ import annotations

import pytest

from pykvm import Mode, assemble
from pykvm.memory import layout
from pykvm.testing import Guests
from pykvm.x86 import Gate, Idt

# The handler tells the stack it runs on: the high byte of RSP, through the debug-exit port.
HANDLER = """
_start: ud2
handler: mov %esp, %eax
        shr $8, %eax
        out %al, $0xf4
        hlt
"""


@pytest.mark.parametrize("mode", [Mode.PROTECTED, Mode.LONG])
@pytest.mark.parametrize(("ring", "stack"), [(0, layout.STACK_TOP), (3, layout.KERNEL_STACK_TOP)])
def test_an_exception_goes_through_the_hosts_idt_and_tss(guest: Guests, mode: Mode, ring: int, stack: int) -> None:
    image = assemble(HANDLER, mode=mode)
    handler = next(symbol.address for symbol in image.symbols if symbol.name == "handler")
    machine = guest.machine()
    machine.load(image, mode=mode, ring=ring)
    idt = Idt()
    idt.set(6, Gate(handler))
    sregs = machine.vcpu.get_sregs()
    sregs.idt = idt.write(machine.memory, layout.IDT, long=mode is Mode.LONG)
    machine.vcpu.set_sregs(sregs)
    result = machine.run(timeout=5)
    assert result.exit_code == ((stack - 1) >> 8) << 1 | 1
