"""pykvm.markup: what notebooks show is well-formed, bounded, and holds no HTML but pykvm's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.kvm import CpuidEntry, Hlt, IoOut, Regs, Segment, Shutdown, Sregs
from pykvm.kvm.exits import MmioWrite
from pykvm.machine import CpuResult, RunResult
from pykvm.machine.output import Output
from pykvm.machine.stop import Crashed, DebugExitWritten, Halted
from pykvm.markup import (
    LONGEST_TEXT,
    MOST_ROWS,
    Markup,
    Record,
    facts,
    folded,
    grid,
    preformatted,
    record,
    stacked,
    table,
)
from pykvm.memory import GuestMemory
from pykvm.units import Gpa, KiB, MiB
from pykvm.x86 import Cpuid, FrameAllocator, PageTables, Paging, PagingMode, page_map, walk

OURS = {"table", "caption", "thead", "tbody", "tr", "th", "td", "code", "pre", "div", "details", "summary"}
ATTRIBUTES = {"scope", "style"}


class Page(HTMLParser):
    """Reads HTML as a browser would; fails on tags that are not pykvm's or do not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.captions: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in OURS
        assert {name for name, _ in attrs} <= ATTRIBUTES
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if "th" in self.open or "td" in self.open:
            self.rows[-1][-1] += data
        if "caption" in self.open:
            self.captions.append(data)

    def handle_comment(self, data: str) -> None:
        pytest.fail(f"a comment: {data!r}")

    def handle_decl(self, decl: str) -> None:
        pytest.fail(f"a declaration: {decl!r}")

    def handle_pi(self, data: str) -> None:
        pytest.fail(f"an instruction: {data!r}")

    @property
    def text(self) -> str:
        return "".join(self.words)

    @property
    def pairs(self) -> dict[str, str]:
        """The names and values of all rows of two columns, or more pairs side by side."""
        return {row[at]: row[at + 1] for row in self.rows for at in range(0, len(row) - 1, 2)}


def show(value: object) -> Page:
    """Return what a notebook would show of ``value``."""
    return Page(value._repr_html_())  # type: ignore[attr-defined]


PIECES = ["<script>alert(1)</script>", "</td>", "</pre>", "<!--", "&lt;", "\"'>", "]]>", "\x1b[2J", "\ud800", "a"]
HOSTILE = st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


# ---- text is text ----


@given(HOSTILE)
def test_any_text_comes_out_as_its_characters(text: str) -> None:
    shown = "".join(
        character if character.isprintable() or character in "\n\t" else character.encode("unicode_escape").decode()
        for character in text
    )
    assert Page(preformatted(text)).text == shown
    assert Page(facts([(text, text)])).rows == [[shown, shown]]
    assert Page(table([text], [[text]], text)).rows == [[shown], [shown]]
    assert Page(folded(text, Markup("")))
    assert Page(stacked(facts([], text), grid([(text, text)], 2, text)))


@given(HOSTILE)
def test_what_is_shown_can_be_encoded(text: str) -> None:
    preformatted(text).encode()


def test_markup_is_kept_in_a_cell() -> None:
    assert Page(facts([("a", preformatted("b\nc"))])).pairs == {"a": "b\nc"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (9, "9"),
        (0x3F8, "0x3f8"),
        (-1, "-1"),
        (True, "True"),
        (None, "None"),
        (b"Hi", "48 69"),
        (PagingMode.LONG4, "LONG4"),
        ((1, 0x10), "1, 0x10"),
        (1.5, "1.5"),
        (("<b>",), "<b>"),
        (Hlt, str(Hlt)),
    ],
)
def test_values_are_shown_as_manuals_print_them(value: object, shown: str) -> None:
    assert Page(facts([("value", value)])).pairs == {"value": shown}


# ---- nothing is long ----


def test_of_a_long_text_the_beginning_is_shown_and_how_much_is_left_out() -> None:
    page = Page(facts([("a", "x" * (LONGEST_TEXT + 7))]))
    assert page.text.endswith("x... and 7 characters more")


def test_of_a_long_output_the_end_is_shown() -> None:
    page = Page(preformatted("x" * LONGEST_TEXT + "the end"))
    assert page.text.startswith("... 7 characters before\nx")
    assert page.text.endswith("the end")


def test_of_many_rows_the_first_are_shown() -> None:
    endless = (("name", number) for number in iter(int, 1))
    assert len(Page(table(["a", "b"], endless)).rows) == 1 + MOST_ROWS + 1
    assert Page(facts(("name", 1) for _ in iter(int, 1))).rows[-1] == ["...", "and more"]


@pytest.mark.parametrize("value", [bytes(10 * MiB), "x" * MiB, tuple(range(MiB)), ("x" * LONGEST_TEXT,) * 300])
def test_a_large_value_is_shown_in_part(value: object) -> None:
    assert len(facts([("value", value)])) < 2 * LONGEST_TEXT


# ---- records ----


@dataclass(frozen=True, slots=True)
class Thing(Record):
    """Something with fields."""

    name: str
    address: int


def test_a_record_is_a_table_of_its_fields() -> None:
    page = show(Thing("<i>", 0x1000))
    assert page.captions == ["Thing"]
    assert page.pairs == {"name": "<i>", "address": "0x1000"}


def test_what_is_no_dataclass_has_no_fields_to_show() -> None:
    with pytest.raises(TypeError, match="no dataclass"):
        record(3)


# ---- what pykvm shows ----


def test_an_exit_is_shown_with_the_kernels_name() -> None:
    page = show(IoOut(port=0x3F8, size=1, count=1, data=b"H"))
    assert page.captions == ["IoOut (KVM_EXIT_IO)"]
    assert page.pairs == {"port": "0x3f8", "size": "1", "count": "1", "data": "48"}


def test_registers_are_shown_four_a_row() -> None:
    page = show(Regs(rax=0x1234, rip=0x8000))
    assert [len(row) for row in page.rows] == [8, 8, 8, 8, 4]
    assert page.pairs["rax"] == "0x1234"
    assert page.pairs["rip"] == "0x8000"


def test_special_registers_are_shown_segment_by_segment() -> None:
    page = show(Sregs(cs=Segment(selector=0x10, base=0x40), cr0=0x11, efer=0x500))
    head = next(row for row in page.rows if "selector" in row)
    code = next(row for row in page.rows if row[0] == "cs")
    assert (code[head.index("selector")], code[head.index("base")]) == ("0x10", "0x40")
    assert page.pairs["cr0"] == "0x11"
    assert page.pairs["efer"] == "0x500"


@pytest.fixture
def tables() -> Iterator[tuple[GuestMemory, PageTables]]:
    with GuestMemory(1 * MiB) as memory:
        built = PageTables(memory, PagingMode.LONG4, FrameAllocator(0x10000, 0x20000))
        built.map(0x40000000, 0x5000, 8 * KiB, writable=False)
        yield memory, built


def test_a_walk_is_shown_level_by_level(tables: tuple[GuestMemory, PageTables]) -> None:
    memory, built = tables
    page = show(walk(memory, Paging(built.mode, built.root), 0x40001234))
    assert [row[0] for row in page.rows] == ["table", "PML4", "PDPT", "PD", "PT"]
    assert page.rows[-1][1:] == ["1", "0x13008", "0x6001", "P"]
    assert page.captions == ["linear 0x40001234 is guest-physical 0x6234"]


def test_a_walk_that_leads_nowhere_says_why(tables: tuple[GuestMemory, PageTables]) -> None:
    memory, built = tables
    page = show(walk(memory, Paging(built.mode, built.root), 0))
    assert page.captions[0].startswith("linear 0x0 is not mapped: ")


def test_page_tables_are_shown_as_what_they_map(tables: tuple[GuestMemory, PageTables]) -> None:
    memory, built = tables
    page = show(built)
    assert page.rows[1:] == [["0x40000000", "0x40001fff", "0x5000", "4K", "R-X supervisor"]]
    assert page.rows == show(page_map(memory, Paging(built.mode, built.root))).rows


def test_a_map_without_paging_says_so(tables: tuple[GuestMemory, PageTables]) -> None:
    memory, _ = tables
    assert show(page_map(memory, Paging.of(Sregs()))).text == "no paging: linear addresses are physical addresses"


def test_memory_is_shown_region_by_region() -> None:
    with GuestMemory(1 * MiB) as memory:
        memory.add_rom(0xF0000000, b"x", name="<bios>")
        rows = show(memory).rows
    assert rows[1:] == [
        ["0", "0xfffff", "1 MiB", "ram", "ram"],
        ["0xf0000000", "0xf0000fff", "4 KiB", "<bios>", "rom"],
    ]


def test_cpuid_is_shown_by_names_and_leaf_by_leaf() -> None:
    page = show(Cpuid([CpuidEntry(1, ecx=1 << 31)]))
    assert "hypervisor" in page.pairs["features"]
    assert ["1", "0", "0x00000000", "0x00000000", "0x80000000", "0x00000000"] in page.rows


def result(**changes: object) -> RunResult:
    cpu = CpuResult(0, Halted(), "halted", Regs(rip=0x8003), Sregs(cr0=0x11))
    plain = RunResult(
        stop=Halted(),
        cpu=0,
        cpus=(cpu,),
        serial=Output(b"hello\n"),
        debugcon=Output(b""),
        exits=7,
        last_exits=(IoOut(0x3F8, 1, 1, b"o"), Hlt()),
        duration=0.00123,
        report="",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_a_result_is_shown_by_what_one_asks_first() -> None:
    page = show(result())
    assert page.pairs["stop"].startswith("halted")
    assert page.pairs["serial"] == "hello\n"
    assert page.pairs["exits"] == "7"
    assert page.pairs["duration"] == "1.23 ms"
    assert {"debugcon", "exit code"} & page.pairs.keys() == set()
    assert ["io out 0x3f8 'o'"] in page.rows
    assert ["cr0", "0x11", "[ET PE]"] in page.rows


def test_a_result_with_an_exit_code_shows_it() -> None:
    assert show(result(stop=DebugExitWritten(42))).pairs["exit code"] == "85"


def test_a_crash_is_shown_with_its_report() -> None:
    page = show(result(stop=Crashed(Shutdown()), report="the guest crashed & <burned>"))
    assert "the guest crashed & <burned>" in page.text


@given(st.binary(max_size=80), HOSTILE)
def test_whatever_a_guest_prints_a_result_stays_whole(data: bytes, report: str) -> None:
    page = show(
        result(serial=Output(data), debugcon=Output(data), report=report, last_exits=(MmioWrite(Gpa(0), data[:8]),))
    )
    assert page.pairs["exits"] == "7"


def test_one_cpu_is_shown_with_its_flags_by_name() -> None:
    page = show(result().cpus[0])
    assert ["rflags", "2", "[-]"] in page.rows
    assert page.pairs["CPU"] == "CPU 0: halted: HLT, and nothing can wake this CPU, RIP 0x8003"
