"""pykvm.machine.output: what a guest printed is kept, but not for ever."""

from __future__ import annotations

import resource

from hypothesis import given
from hypothesis import strategies as st

from pykvm.machine.output import Output, OutputLog


def test_output_is_forwarded_as_it_comes() -> None:
    seen: list[bytes] = []
    log = OutputLog(seen.append)
    log.write(b"a")
    log.write(b"bc")
    assert seen == [b"a", b"bc"]
    assert log.output().data == b"abc"


@given(st.lists(st.binary(max_size=20)), st.integers(1, 30))
def test_only_the_last_bytes_are_kept_and_the_rest_is_counted(chunks: list[bytes], limit: int) -> None:
    log = OutputLog(limit=limit)
    for chunk in chunks:
        log.write(chunk)
    everything = b"".join(chunks)
    assert log.output() == Output(everything[-limit:], max(0, len(everything) - limit))


def test_bytes_that_are_no_utf8_are_shown_as_replacement_characters() -> None:
    log = OutputLog()
    log.write(b"ok \xff")
    assert log.output().text == str(log.output()) == "ok \ufffd"


def test_a_flood_of_output_does_not_grow_the_process() -> None:
    log = OutputLog()
    line = b"x" * 4096
    for _ in range(512):  # what is kept reaches its limit
        log.write(line)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(64 * 256):  # 64 MiB more
        log.write(line)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 16 * 1024  # KiB


def test_an_output_stays_what_it_was() -> None:
    log = OutputLog()
    log.write(b"first")
    before = log.output()
    log.write(b" second")
    assert before.text == "first"


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_what_was_written_since_is_taken_back(first: bytes, second: bytes) -> None:
    log = OutputLog()
    log.write(first)
    total = log.total
    log.write(second)
    assert log.total == len(first + second)
    log.take_back(total)
    assert (log.output().data, log.total) == (first, total)


def test_what_was_dropped_meanwhile_is_not_seen_again() -> None:
    log = OutputLog(limit=4)
    log.write(b"abc")
    total = log.total
    log.write(b"0123456789")
    assert log.output().data == b"6789"
    log.take_back(total)
    assert (log.output().data, log.total) == (b"", 3)
