"""Guests as files: ELF, flat binaries, assembly sources and the bundled guests, all turned into an ``Image``.

The names below are imported when first used: the build of the package needs ``bundle`` and ``assembler`` at a time when
neither the compiled shim nor any dependency is there.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.boot.acpi import acpi_tables, wake_vector
    from pykvm.boot.assembler import AssemblerWarning
    from pykvm.boot.bundle import (
        BUNDLE,
        BundledGuest,
        Expectation,
        bundled_guests,
        find_guest,
        is_bundled,
        probe_settings,
        suggest,
    )
    from pykvm.boot.detection import assemble, open_image
    from pykvm.boot.elf import elf_image
    from pykvm.boot.flat import flat_image
    from pykvm.boot.image import Image, Segment, Symbol
    from pykvm.boot.lines import LineTable, SourceLine, source_line
    from pykvm.boot.mptable import mp_table
    from pykvm.boot.protocol import BootModule, BootOptions, BootProtocol, Platform

__all__ = [
    "BUNDLE",
    "AssemblerWarning",
    "BootModule",
    "BootOptions",
    "BootProtocol",
    "BundledGuest",
    "Expectation",
    "Image",
    "LineTable",
    "Platform",
    "Segment",
    "SourceLine",
    "Symbol",
    "acpi_tables",
    "assemble",
    "bundled_guests",
    "elf_image",
    "find_guest",
    "flat_image",
    "is_bundled",
    "mp_table",
    "open_image",
    "probe_settings",
    "source_line",
    "suggest",
    "wake_vector",
]

_HOMES = {
    "pykvm.boot.acpi": ("acpi_tables", "wake_vector"),
    "pykvm.boot.mptable": ("mp_table",),
    "pykvm.boot.assembler": ("AssemblerWarning",),
    "pykvm.boot.bundle": (
        "BUNDLE",
        "BundledGuest",
        "Expectation",
        "bundled_guests",
        "find_guest",
        "is_bundled",
        "probe_settings",
        "suggest",
    ),
    "pykvm.boot.detection": ("assemble", "open_image"),
    "pykvm.boot.elf": ("elf_image",),
    "pykvm.boot.flat": ("flat_image",),
    "pykvm.boot.image": ("Image", "Segment", "Symbol"),
    "pykvm.boot.lines": ("LineTable", "SourceLine", "source_line"),
    "pykvm.boot.protocol": ("BootModule", "BootOptions", "BootProtocol", "Platform"),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'pykvm.boot' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
