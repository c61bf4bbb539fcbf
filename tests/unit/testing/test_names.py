"""What ``import pykvm.testing`` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pykvm.testing


@pytest.mark.parametrize("name", pykvm.testing.__all__)
def test_every_name_can_be_imported(name: str) -> None:
    assert getattr(pykvm.testing, name) is not None
    assert name in dir(pykvm.testing)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'nothing'"):
        _ = pykvm.testing.nothing


def test_neither_pytest_nor_hypothesis_is_needed() -> None:
    program = """
import sys
sys.modules["pytest"] = sys.modules["_pytest"] = sys.modules["hypothesis"] = None
from pykvm.testing import ANY, DeviceBench, Guests, LoneSerial, Recorder, assert_exits, replay, run_guest, run_script
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
