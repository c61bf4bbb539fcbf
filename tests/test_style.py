"""The rules of docs/style.md that a program can check."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(path for path in (ROOT / "pykvm").rglob("*.py"))
LONGEST = 500  # lines


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_opens_with_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} does not say what it models"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_has_at_most_500_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_what_it_exports(path: Path) -> None:
    tree = ast.parse(path.read_text())
    names = [
        node.targets[0].id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    ]
    has_code = any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ImportFrom) for node in tree.body)
    assert "__all__" in names or not has_code


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_never_asserts_or_swallows_everything(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: input is checked with errors, not with assert"
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"line {node.lineno}: bare except"


def test_the_reading_order_names_every_module_once() -> None:
    text = (ROOT / "docs" / "reading-order.md").read_text()
    named = re.findall(r"`(pykvm/[\w/]+\.py)`", text)
    assert sorted(named) == [name_of(path) for path in MODULES if path.name != "__init__.py"]


def test_the_shim_has_at_most_500_lines() -> None:
    assert len((ROOT / "csrc" / "shim.c").read_text().splitlines()) <= LONGEST


def test_only_the_kvm_layer_imports_the_compiled_shim() -> None:
    users = [path for path in MODULES if re.search(r"^\s*from pykvm\._shim import", path.read_text(), re.MULTILINE)]
    assert {path.parent.name for path in users} == {"kvm"}
