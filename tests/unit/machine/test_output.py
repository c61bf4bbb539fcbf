"""pykvm.machine.output: what a guest printed is kept, but not for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pykvm.machine.output import OutputLog


def test_output_is_forwarded_as_it_comes() -> None:
    seen: list[bytes] = []
    log = OutputLog(seen.append)
    log.write(b"a")
    log.write(b"bc")
    assert seen == [b"a", b"bc"]
    assert log.data == b"abc"


@given(st.lists(st.binary(max_size=20)), st.integers(1, 30))
def test_only_the_last_bytes_are_kept_and_the_rest_is_counted(chunks: list[bytes], limit: int) -> None:
    log = OutputLog(limit=limit)
    for chunk in chunks:
        log.write(chunk)
    everything = b"".join(chunks)
    assert log.data == everything[-limit:]
    assert log.dropped == max(0, len(everything) - limit)


def test_bytes_that_are_no_utf8_are_shown_as_replacement_characters() -> None:
    log = OutputLog()
    log.write(b"ok \xff")
    assert log.text == str(log) == "ok \ufffd"
