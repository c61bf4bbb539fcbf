"""The compiled shim's declarations against the compiler's layouts, and its functions on bad descriptors."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from pykvm._shim import ffi, lib

DECLARATIONS = Path(__file__).resolve().parents[2] / "csrc" / "kvm_decl.h"
STRUCTS = ffi.list_types()[1]


def test_the_shim_knows_every_structure_that_is_declared() -> None:
    declared = set(re.findall(r"^struct (\w+) \{", DECLARATIONS.read_text(), re.MULTILINE))
    assert declared == {name for name in STRUCTS if "$" not in name}


@pytest.mark.parametrize("name", STRUCTS)
def test_every_structure_has_the_compilers_layout(name: str) -> None:
    # cffi holds a structure against the compiler's layout when it is first looked at, not at import.
    kind = ffi.typeof(f"struct {name}")
    assert ffi.sizeof(kind) > 0
    assert kind.fields, "complete, not opaque"
    variable = any(field.type.kind == "array" and field.type.length is None for _, field in kind.fields)
    c = ffi.new(f"struct {name} *", {kind.fields[-1][0]: 1} if variable else None)
    for field, _ in kind.fields:
        getattr(c, field)


def test_every_constant_was_found_in_the_systems_headers() -> None:
    names = re.findall(r"^#define (\w+) \.\.\.$", DECLARATIONS.read_text(), re.MULTILINE)
    assert len(names) > 100
    assert all(isinstance(getattr(lib, name), int) for name in names)


def test_every_function_returns_minus_errno_on_a_bad_descriptor() -> None:
    vcpu = ffi.new("struct pykvm_vcpu *")
    results = {
        "pykvm_close": lib.pykvm_close(-1),
        "pykvm_ioctl": lib.pykvm_ioctl(-1, lib.KVM_GET_API_VERSION, 0),
        "pykvm_ioctl_pointer": lib.pykvm_ioctl_pointer(-1, lib.KVM_GET_REGS, vcpu),
        "pykvm_create_vm": lib.pykvm_create_vm(-1, 0),
        "pykvm_set_user_memory_region": lib.pykvm_set_user_memory_region(-1, 0, 0, 0, 0, ffi.NULL),
        "pykvm_create_vcpu": lib.pykvm_create_vcpu(-1, 0, 4096, vcpu),
    }
    assert results == dict.fromkeys(results, -errno.EBADF)


def test_opening_what_is_not_there_returns_minus_enoent() -> None:
    assert lib.pykvm_open(b"/nonexistent") == -errno.ENOENT


def test_a_vcpu_without_a_mapping_cannot_be_kicked() -> None:
    assert lib.pykvm_kick(ffi.new("struct pykvm_vcpu *")) == -errno.EBADF
