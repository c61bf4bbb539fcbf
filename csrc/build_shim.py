"""Build what pykvm needs beside its Python files: the compiled shim and the bundled guests.

As hatchling's build hook it runs inside ``pip install``: for a wheel it builds into a temporary directory and adds the
results to the wheel, for an editable install it builds in place, into ``pykvm/``. As a script it builds in place:
``python csrc/build_shim.py [--sanitize]``.

See: cffi's documentation, "API mode, out-of-line". Leaves out other compilers than the one Python itself names.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from cffi import FFI
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
WARNINGS = ["-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]

# What must be there before anything is compiled, and the Debian package that brings it.
HEADERS = {
    "stdint.h": "libc6-dev",
    "Python.h": "python3-dev",
    "linux/kvm.h": "linux-libc-dev",
}


class MissingToolError(SystemExit):
    """Something that the build needs is not installed; the message names the Debian package."""

    def __init__(self, what: str, package: str) -> None:
        super().__init__(
            f"\npykvm: cannot be built: {what} is missing.\n"
            f"pykvm: on Debian or Ubuntu: sudo apt-get install {package}\n"
        )


class ShimBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """The hook that ``[tool.hatch.build.hooks.custom]`` names."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the shim and the guests, and say where they belong in the wheel."""
        if self.target_name != "wheel":
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        if version == "editable":
            build(ROOT / "pykvm")
            return
        self._output = tempfile.TemporaryDirectory(prefix="pykvm-build-")
        output = Path(self._output.name)
        build(output)
        for path in sorted(output.iterdir()):
            build_data["force_include"][str(path)] = f"pykvm/{path.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary directory."""
        if hasattr(self, "_output"):
            self._output.cleanup()


def build(output: Path, *, sanitize: bool = False) -> None:
    """Put the compiled shim and the folder ``_guests`` into ``output``."""
    check_tools()
    build_extension(output, sanitize=sanitize)
    build_guests(output / "_guests")


def compiler() -> list[str]:
    """Return the C compiler's command: $CC, or the one Python was built with, or cc."""
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    return command if shutil.which(command[0]) else ["gcc"]


def check_tools() -> None:
    """Raise MissingToolError for the first tool or header that is not there."""
    if shutil.which(compiler()[0]) is None:
        raise MissingToolError("a C compiler (gcc)", "gcc")
    for tool in ("as", "ld"):
        if shutil.which(tool) is None:
            raise MissingToolError(f"GNU {tool}", "binutils")
    include = sysconfig.get_paths()["include"]
    for header, package in HEADERS.items():
        command = [*compiler(), f"-I{include}", "-E", "-x", "c", "-", "-o", os.devnull]
        source = f"#include <{header}>\n"
        if subprocess.run(command, input=source, text=True, capture_output=True, check=False).returncode:
            raise MissingToolError(f"the header <{header}>", package)


def make_builder(*, sanitize: bool = False) -> FFI:
    """Return the cffi builder of ``pykvm._shim``."""
    builder = FFI()
    builder.cdef((CSRC / "kvm_decl.h").read_text())
    extra = SANITIZERS if sanitize else ["-O2"]
    builder.set_source(
        "pykvm._shim",
        '#include <errno.h>\n#include "shim.h"\n',
        sources=["shim.c"],
        include_dirs=[str(CSRC)],
        extra_compile_args=[*WARNINGS, *extra],
        extra_link_args=SANITIZERS if sanitize else [],
    )
    return builder


def build_extension(output: Path, *, sanitize: bool = False) -> None:
    """Compile the shim into ``output``, which plays the part of the package ``pykvm``."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pykvm-shim-") as scratch:
        shutil.copy(CSRC / "shim.c", scratch)
        built = Path(make_builder(sanitize=sanitize).compile(tmpdir=scratch))
        # Replaced, not overwritten: a process may have the old one mapped.
        beside = output / f".{built.name}.new"
        shutil.copy(built, beside)
        beside.replace(output / built.name)


def build_guests(output: Path) -> None:
    """Assemble every guest of ``guests/`` into ``output``, beside its ``expected.toml`` and its source."""
    sys.path.insert(0, str(ROOT))
    try:
        from pykvm.boot.bundle import build_all
    finally:
        sys.path.remove(str(ROOT))
    build_all(ROOT / "guests", output)


def main() -> None:
    """Build in place."""
    parser = argparse.ArgumentParser(description="Build pykvm's compiled shim and its guests in place.")
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UBSan")
    build(ROOT / "pykvm", sanitize=parser.parse_args().sanitize)


if __name__ == "__main__":
    main()
