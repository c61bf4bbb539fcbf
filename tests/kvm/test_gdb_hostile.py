"""Whoever is at gdb's end may say anything: with a real guest, too, everything is answered, and nothing hangs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm import Machine, assemble
from pykvm.observe.gdbstub import Ending, HostFile, Monitor, Session, SteppedGuest
from pykvm.observe.gdbstub.layout import Architecture, layout_of
from pykvm.observe.gdbstub.packets import PACKET_SIZE, escape
from pykvm.observe.stepping import Stepper

CODE = """
        mov     $3, %ecx
again:  inc     %ebx
        mov     %ebx, 0x9000
        out     %al, $0x80
        dec     %ecx
        jnz     again
        hlt
"""

RUNNING_TIME = 2.0  # seconds, for all that one conversation lets the guest run

numbers = st.integers(0, 0x20_0000) | st.integers(0, (1 << 64) - 1) | st.sampled_from([0x8000, 0x10_0000, 1 << 47])
digits = numbers.map(lambda number: b"%x" % number)
values = st.binary(max_size=16).map(lambda data: data.hex().encode())
packets = st.one_of(
    st.sampled_from([b"g", b"s", b"vCont;s:1", b"bs", b"bc", b"c", b"?", b"vCont;c", b"qThreadExtraInfo,1"]),
    st.builds(lambda address, size: b"m" + address + b"," + size, digits, digits),
    st.builds(lambda address, data: b"M%s,%x:%s" % (address, len(data) // 2, data), digits, values),
    st.builds(lambda kind, address: b"Z%d,%s,1" % (kind, address), st.integers(0, 4), digits),
    st.builds(
        lambda what: b"qRcmd," + what.hex().encode(), st.sampled_from([b"exits", b"reset", b"history on", b"screen"])
    ),
    st.builds(lambda address: b"qRcmd," + (b"walk 0x" + address).hex().encode(), digits),
    st.binary(max_size=30),
)


@st.composite
def register_writes(draw: st.DrawFn) -> bytes:
    """Return a packet that writes a register, with as many bytes as it has in long mode."""
    layout = layout_of(Architecture.X86_64)
    number = draw(st.integers(0, len(layout) - 1))
    size = layout[number].size
    value = draw(
        st.binary(min_size=size, max_size=size) | st.integers(0, 15).map(lambda n: bytes([n]).ljust(size, b"\0"))
    )
    return b"P%x=%s" % (number, value.hex().encode())


@settings(max_examples=40)
@given(mode=st.sampled_from(["real", "long"]), conversation=st.lists(packets | register_writes(), max_size=25))
@pytest.mark.kvm(timeout=240)
def test_whatever_is_asked_of_a_real_guest_is_answered(mode: str, conversation: list[bytes]) -> None:
    image = assemble(CODE, mode=mode)
    with Machine("2M") as machine:
        machine.load(image, mode=mode)
        stepper = Stepper(machine)
        debuggee = SteppedGuest(machine, stepper, RUNNING_TIME)
        session = Session(debuggee, Monitor(machine, debuggee), HostFile("guest", b""))
        for packet in conversation:
            for answer in session.handle(packet):
                assert len(escape(answer)) <= PACKET_SIZE
            if session.ending in (Ending.DETACHED, Ending.KILLED):
                break
