from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.observe.gdbstub import Ended, Ending, HostFile, Session, Standing, Why
from pykvm.observe.gdbstub.layout import Architecture, layout_of
from pykvm.observe.gdbstub.packets import PACKET_SIZE, escape
from pykvm.observe.stepping import Access, Watchpoint
from tests.unit.observe.gdbstub.conftest import FakeGuest, answer_monitor, long_mode, protected_mode, real_mode


def ask(session: Session, data: bytes) -> bytes:
    """Return the one answer to ``data``."""
    answers = session.handle(data)
    assert len(answers) == 1, answers
    return answers[0]


def words(answers: list[bytes]) -> str:
    """Return the text that gdb is to show."""
    return b"".join(bytes.fromhex(a[1:].decode()) for a in answers if a[:1] == b"O" and a != b"OK").decode()


# ---- what the stub can do ----


def test_gdb_is_told_what_there_is(session: Session) -> None:
    features = ask(session, b"qSupported:multiprocess+;swbreak+").decode().split(";")
    assert f"PacketSize={PACKET_SIZE:x}" in features
    assert {"qXfer:features:read+", "ReverseStep+", "ReverseContinue+", "vContSupported+"} <= set(features)
    assert ask(session, b"vCont?") == b"vCont;c;C;s;S"


@pytest.mark.parametrize(
    "packet", [b"", b"vMustReplyEmpty", b"qTStatus", b"Qfoo", b"!", b"\xff", b"z9,0,0", b"Hx1", b"R"]
)
def test_what_nobody_knows_is_answered_with_nothing(packet: bytes, session: Session) -> None:
    assert ask(session, packet) == b""


def test_acknowledgements_can_be_left_out(session: Session) -> None:
    assert not session.no_acks
    assert ask(session, b"QStartNoAckMode") == b"OK"
    assert session.no_acks


def test_the_description_comes_in_pieces(session: Session) -> None:
    text = b""
    while True:
        piece = ask(session, b"qXfer:features:read:target.xml:%x,100" % len(text))
        text += piece[1:]
        if piece[:1] == b"l":
            break
        assert piece[:1] == b"m"
    assert b"<architecture>i8086</architecture>" in text
    assert ask(session, b"qXfer:features:read:target.xml:ffffffff,100") == b"l"


@pytest.mark.parametrize("packet", [b"qXfer:features:read:other.xml:0,1", b"qXfer:auxv:read::0,1", b"qXfer:x"])
def test_there_is_nothing_else_to_transfer(packet: bytes, session: Session) -> None:
    assert ask(session, packet) in (b"", b"E00")


# ---- registers ----


def test_all_registers_are_those_of_the_layout(session: Session, fake: FakeGuest) -> None:
    layout = layout_of(Architecture.I8086)
    assert len(ask(session, b"g")) == 2 * sum(register.size for register in layout)
    assert ask(session, b"p0") == b"00000000"


def test_registers_are_written_one_by_one_and_all_at_once(session: Session, fake: FakeGuest) -> None:
    assert ask(session, b"P0=78563412") == b"OK"
    assert fake.registers(0).regs.rax == 0x1234_5678
    everything = ask(session, b"g")
    assert ask(session, b"P0=00000000") == b"OK"
    assert ask(session, b"G" + everything) == b"OK"
    assert fake.registers(0).regs.rax == 0x1234_5678


def test_what_kvm_refuses_is_said_in_words(session: Session) -> None:
    number = next(n for n, register in enumerate(layout_of(Architecture.I8086)) if register.name == "cr0")
    assert ask(session, b"P%x=ad0b0000" % number) == b"E.KVM refuses CR0"


@pytest.mark.parametrize("packet", [b"p", b"pfff", b"p-1", b"P0", b"P0=", b"P0=1", b"P0=zz", b"Pffff=00", b"G00", b"G"])
def test_registers_that_are_none_are_an_error(packet: bytes, session: Session, fake: FakeGuest) -> None:
    assert ask(session, packet)[:2] == b"E."
    assert not fake.files


# ---- memory ----


def test_memory_is_read_and_written(session: Session, fake: FakeGuest) -> None:
    assert ask(session, b"M10,3:010203") == b"OK"
    assert ask(session, b"X20,2:#}") == b"OK"
    assert ask(session, b"m10,3") == b"010203"
    assert fake.memory[0x20:0x22] == b"#}"


def test_memory_that_ends_is_read_to_its_end(session: Session) -> None:
    assert ask(session, b"mfffe,10") == b"0000"
    assert ask(session, b"m10000,1") == b"E14"
    assert ask(session, b"mffffffffffffffff,ffffffffffffffff") == b"E14"
    assert ask(session, b"Mffff,2:0000") == b"E14"
    assert ask(session, b"m0,0") == ask(session, b"m10000,0") == b""
    assert ask(session, b"Xffffffff,0:") == b"OK"


def test_a_large_read_fits_into_a_packet(session: Session) -> None:
    answer = ask(session, b"m0,ffffffff")
    assert 0 < len(answer) <= PACKET_SIZE


@pytest.mark.parametrize(
    "packet",
    [b"m", b"m0", b"m0,", b"m0,1,2", b"m-1,1", b"mx,1", b"m00000000000000000,1", b"M0,2:00", b"M0,1:0", b"X0,2:a"],
)
def test_a_malformed_access_is_an_error(packet: bytes, session: Session, fake: FakeGuest) -> None:
    assert ask(session, packet).startswith(b"E.malformed packet")
    assert not any(fake.memory)


# ---- threads ----


def test_cpus_are_threads_from_1_on(session: Session) -> None:
    assert ask(session, b"qfThreadInfo") == b"m1,2"
    assert ask(session, b"qsThreadInfo") == b"l"
    assert bytes.fromhex(ask(session, b"qThreadExtraInfo,2").decode()) == b"CPU 1: halted"
    assert [ask(session, b"T%d" % thread)[:2] for thread in (1, 2, 3, 0)] == [b"OK", b"OK", b"E.", b"E."]
    assert ask(session, b"qC") == b"QC1"


def test_registers_are_those_of_the_chosen_thread(session: Session) -> None:
    assert ask(session, b"Hg2") == b"OK"
    assert ask(session, b"p0") == b"01000000"
    assert ask(session, b"Hg0") == ask(session, b"Hg-1") == ask(session, b"Hc-1") == b"OK"
    assert ask(session, b"p0") == b"01000000"
    assert ask(session, b"Hg3") == b"E.there is no thread 3: threads are 1 to 2"


# ---- going on ----


@pytest.mark.parametrize(
    ("packet", "asked"),
    [
        (b"c", "go"),
        (b"C05", "go"),
        (b"vCont;c", "go"),
        (b"vCont;c:-1", "go"),
        (b"vCont;c:1;c:2", "go"),
        (b"s", "step 0"),
        (b"vCont;s:2;c", "step 1"),
        (b"vCont;S05:1", "step 0"),
        (b"vCont;s", "step 0"),
        (b"bs", "step back"),
        (b"bc", "go back"),
    ],
)
def test_commands_that_go_on(packet: bytes, asked: str, session: Session, fake: FakeGuest) -> None:
    assert ask(session, packet).startswith(b"T05thread:")
    assert fake.asked == [asked]


@pytest.mark.parametrize(
    "packet", [b"vCont;c:1", b"vCont;t", b"vCont;", b"vCont;s:x", b"vCont;c:9", b"vCont;" + b"c;" * 999]
)
def test_actions_that_make_no_sense_move_nothing(packet: bytes, session: Session, fake: FakeGuest) -> None:
    assert ask(session, packet)[:2] == b"E."
    assert fake.asked == []


@pytest.mark.parametrize(
    ("outcome", "reply"),
    [
        (Standing(Why.STEP, 1), b"T05thread:2;"),
        (Standing(Why.INTERRUPT), b"T02thread:1;"),
        (Standing(Why.CRASH), b"T0bthread:1;"),
        (Standing(Why.OLDEST), b"T05thread:1;replaylog:begin;"),
        (Standing(Why.BREAKPOINT), b"T05thread:1;swbreak:;"),
        (Standing(Why.WATCHPOINT, 0, Watchpoint(0x10, 4)), b"T05thread:1;watch:10;"),
        (Standing(Why.WATCHPOINT, 0, Watchpoint(0x10, 4, Access.READ)), b"T05thread:1;rwatch:10;"),
        (Standing(Why.WATCHPOINT, 0, Watchpoint(0x10, 4, Access.ANY)), b"T05thread:1;awatch:10;"),
        (Ended(0), b"W00"),
        (Ended(125), b"W7d"),
    ],
)
def test_gdb_is_told_why_the_guest_stands_still(
    outcome: Standing | Ended, reply: bytes, session: Session, fake: FakeGuest
) -> None:
    fake.outcomes = [outcome]
    assert ask(session, b"c") == ask(session, b"?") == reply
    assert (session.ending is Ending.EXITED) == isinstance(outcome, Ended)


def test_a_hardware_breakpoint_is_told_from_a_software_one(session: Session, fake: FakeGuest) -> None:
    fake.outcomes = [Standing(Why.BREAKPOINT), Standing(Why.BREAKPOINT)]
    ask(session, b"Z1,0,1")
    assert ask(session, b"c") == b"T05thread:1;hwbreak:;"
    ask(session, b"Z0,0,1")
    assert ask(session, b"c") == b"T05thread:1;swbreak:;"


def test_words_about_a_stop_come_before_it(session: Session, fake: FakeGuest) -> None:
    fake.outcomes = [Standing(Why.CRASH, words="why\n" * 5000)]
    answers = session.handle(b"c")
    assert words(answers) == "why\n" * 5000
    assert all(len(answer) <= PACKET_SIZE for answer in answers)
    assert answers[-1] == b"T0bthread:1;"


def test_after_a_stop_its_cpu_is_looked_at(session: Session, fake: FakeGuest) -> None:
    fake.outcomes = [Standing(Why.STEP, 1)]
    ask(session, b"c")
    assert ask(session, b"p0") == b"01000000"


def test_a_change_of_mode_is_told_once(session: Session, fake: FakeGuest) -> None:
    fake.files[0] = protected_mode()
    assert "protected mode now: 'set architecture i386'" in words(session.handle(b"s"))
    assert words(session.handle(b"s")) == ""
    fake.files[0] = long_mode()
    assert "long mode now: 'disconnect'" in words(session.handle(b"s"))
    fake.files[0] = real_mode()
    assert words(session.handle(b"s")) == ""


def test_a_new_conversation_goes_on_where_the_last_one_ended(fake: FakeGuest) -> None:
    session = Session(fake, answer_monitor, HostFile("", b""), last=Standing(Why.INTERRUPT, 1))
    assert ask(session, b"?") == b"T02thread:2;"
    assert ask(session, b"p0") == b"01000000"


# ---- breakpoints ----


def test_breakpoints_are_set_and_taken_away(session: Session, fake: FakeGuest) -> None:
    for packet in (b"Z0,8000,1", b"Z1,8000,1", b"Z1,9000,1", b"Z2,10,4", b"Z3,10,4", b"Z4,20,8"):
        assert ask(session, packet) == b"OK"
    assert fake.breakpoints == {0x8000, 0x9000}
    assert fake.watchpoints == {
        Watchpoint(0x10, 4),
        Watchpoint(0x10, 4, Access.READ),
        Watchpoint(0x20, 8, Access.ANY),
    }
    for packet in (b"z0,8000,1", b"z1,9000,1", b"z2,10,4", b"z4,20,8", b"z4,20,8"):
        assert ask(session, packet) == b"OK"
    assert fake.breakpoints == {0x8000}
    assert fake.watchpoints == {Watchpoint(0x10, 4, Access.READ)}


@pytest.mark.parametrize("packet", [b"Z0", b"Z0,0", b"Z0,-1,1", b"Z2,0,0", b"Z2,ffffffffffffffff,2", b"Z,,", b"Zx,0,0"])
def test_a_breakpoint_that_is_none_is_an_error(packet: bytes, session: Session, fake: FakeGuest) -> None:
    assert ask(session, packet)[:2] == b"E."
    assert not fake.breakpoints | fake.watchpoints


def test_breakpoints_are_bounded(session: Session, fake: FakeGuest) -> None:
    answers = [ask(session, b"Z0,%x,1" % address) for address in range(2000)]
    assert b"E.there are 1024 breakpoints" in answers[-1]
    assert len(fake.breakpoints) == 1024


def test_nobody_is_left_with_the_breakpoints_of_a_gdb_that_has_gone(session: Session, fake: FakeGuest) -> None:
    ask(session, b"Z0,8000,1")
    Session(fake, answer_monitor, HostFile("", b""))
    assert not fake.breakpoints


# ---- the end ----


@pytest.mark.parametrize("packet", [b"D", b"D;1"])
def test_detaching_leaves_no_breakpoint_behind(packet: bytes, session: Session, fake: FakeGuest) -> None:
    ask(session, b"Z0,8000,1")
    assert ask(session, packet) == b"OK"
    assert session.ending is Ending.DETACHED
    assert not fake.breakpoints


@pytest.mark.parametrize(("packet", "answers"), [(b"k", []), (b"vKill;1", [b"OK"])])
def test_kill_ends_it(packet: bytes, answers: list[bytes], session: Session) -> None:
    assert session.handle(packet) == answers
    assert session.ending is Ending.KILLED


# ---- monitor commands ----


def test_a_monitor_command_is_answered_with_text(session: Session) -> None:
    answers = session.handle(b"qRcmd," + b"exits".hex().encode())
    assert words(answers) == "0: exits\n"
    assert answers[-1] == b"OK"
    assert session.handle(b"qRcmd," + b"quiet".hex().encode()) == [b"OK"]
    assert words(session.handle(b"qRcmd," + b"fail".hex().encode())) == "that cannot be\n"
    assert ask(session, b"qRcmd,zz")[:2] == b"E."


# ---- hostile peers ----

PREFIXES = [
    *(b"g", b"G", b"p", b"P", b"P0=", b"m", b"M", b"X", b"H", b"Hg", b"T", b"Z", b"Z0,", b"z4,", b"vCont;", b"s", b"c"),
    *(b"qXfer:features:read:target.xml:", b"qRcmd,", b"qThreadExtraInfo,", b"vFile:open:", b"vFile:pread:", b"vFile:"),
    *(b"qSupported:", b"bs", b"bc", b"vFile:fstat:", b"qXfer:exec-file:read::", b"D", b"?", b"q", b"Q", b"v"),
]


@given(
    st.lists(
        st.builds(
            lambda prefix, rest: prefix + rest,
            st.sampled_from(PREFIXES),
            st.binary(max_size=40) | st.text("0123456789abcdef,:;=-", max_size=40).map(str.encode),
        ),
        max_size=12,
    )
)
def test_whatever_comes_is_answered_within_the_size_of_a_packet(packets: list[bytes]) -> None:
    session = Session(FakeGuest(), answer_monitor, HostFile("guest", bytes(range(256)) * 100))
    for packet in packets:
        for answer in session.handle(packet):
            assert len(escape(answer)) <= PACKET_SIZE
