"""csrc/build_shim.py: what is missing is named, with the Debian package that brings it."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def build_shim() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("build_shim", ROOT / "csrc" / "build_shim.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module


def give_tools(folder: Path, *names: str) -> None:
    for name in names:
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)


def test_nothing_is_missing_where_the_tests_run(build_shim: ModuleType) -> None:
    build_shim.check_tools()


@pytest.mark.parametrize(
    ("there", "missing", "package"),
    [((), "a C compiler", "gcc"), (("gcc", "cc"), "GNU as", "binutils"), (("gcc", "cc", "as"), "GNU ld", "binutils")],
)
def test_a_missing_tool_is_named_with_its_debian_package(
    build_shim: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: tuple[str, ...],
    missing: str,
    package: str,
) -> None:
    give_tools(tmp_path, *there)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "gcc")
    with pytest.raises(SystemExit) as caught:
        build_shim.check_tools()
    assert missing in str(caught.value)
    assert f"apt-get install {package}" in str(caught.value)


@pytest.mark.parametrize(
    ("header", "package"),
    [("linux/kvm.h", "linux-libc-dev"), ("Python.h", "python3-dev"), ("stdint.h", "libc6-dev")],
)
def test_a_missing_header_is_named_with_its_debian_package(
    build_shim: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: str, package: str
) -> None:
    # A compiler that has every header but one.
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\nif grep -q "<{header}>"; then exit 1; fi\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(SystemExit) as caught:
        build_shim.check_tools()
    assert f"<{header}>" in str(caught.value)
    assert f"apt-get install {package}" in str(caught.value)
