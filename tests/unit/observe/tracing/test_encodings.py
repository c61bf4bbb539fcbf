"""Which bytes can have made an exit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm import assemble
from pykvm.kvm import Exit, Hlt, IoIn, IoOut, Rdmsr, Shutdown, Wrmsr
from pykvm.observe.tracing.encodings import Encoding, Form, fits

MODES = {16: "real", 32: "protected", 64: "long"}


def code_of(source: str, width: int) -> bytes:
    return assemble(source, mode=MODES[width]).segments[0].data


def fit(exit: Exit, code: bytes, width: int) -> Encoding | None:
    found = fits(exit)
    assert found is not None
    return found(code, width)


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize(
    ("source", "exit", "form"),
    [
        ("out %al, $0x80", IoOut(0x80), Form.PLAIN),
        ("out %al, (%dx)", IoOut(0x3F8), Form.PLAIN),
        ("out %ax, (%dx)", IoOut(0x3F8, 2, 1, b"ab"), Form.PLAIN),
        ("out %eax, $0x80", IoOut(0x80, 4, 1, b"abcd"), Form.PLAIN),
        ("in $0x60, %al", IoIn(0x60), Form.PLAIN),
        ("in (%dx), %ax", IoIn(0x1F0, 2), Form.PLAIN),
        ("in (%dx), %eax", IoIn(0xCFC, 4), Form.PLAIN),
        ("outsb", IoOut(0x3F8), Form.STRING),
        ("rep outsb", IoOut(0x3F8), Form.REPEATED),
        ("rep insw", IoIn(0x1F0, 2, 3), Form.REPEATED),
        ("insl", IoIn(0x1F0, 4), Form.STRING),
        ("fs outsb", IoOut(0x3F8), Form.STRING),
        ("hlt", Hlt(), Form.PLAIN),
        ("rdmsr", Rdmsr(0, 0), Form.PLAIN),
        ("wrmsr", Wrmsr(0, 0, 0), Form.PLAIN),
    ],
)
def test_what_an_assembler_makes_fits(source: str, exit: Exit, form: Form, width: int) -> None:
    code = code_of(source, width)
    assert fit(exit, code + b"\x90", width) == Encoding(len(code), form)


@pytest.mark.parametrize(
    ("source", "exit"),
    [
        ("out %al, $0x80", IoOut(0x81)),  # another port
        ("out %al, (%dx)", IoOut(0x80, 2, 1, b"ab")),  # another size
        ("out %ax, (%dx)", IoOut(0x80, 4, 1, b"abcd")),
        ("in (%dx), %al", IoOut(0x80)),  # another direction
        ("out %al, (%dx)", IoIn(0x80)),
        ("nop", Hlt()),
        ("rdmsr", Wrmsr(0, 0, 0)),
    ],
)
def test_what_cannot_have_been_it_does_not_fit(source: str, exit: Exit) -> None:
    for width in MODES:
        assert fit(exit, code_of(source, width), width) is None


def test_an_exit_that_no_one_instruction_makes_has_none() -> None:
    assert fits(Shutdown()) is None


@given(st.binary(max_size=15), st.sampled_from([16, 32, 64]), st.sampled_from([IoIn(0x60), IoOut(0x80), Hlt()]))
def test_any_bytes_fit_within_their_length_or_not_at_all(code: bytes, width: int, exit: Exit) -> None:
    found = fit(exit, code, width)
    assert found is None or 0 < found.length <= len(code)
