"""Flat binaries: the bytes as they are to be in memory, and nothing about where.

Address and mode must come from whoever knows the file; the defaults are real mode's. Leaves out boot sectors, which a
BIOS would start at 0x7c00: ``load`` can say so.
"""

from __future__ import annotations

from pykvm.boot.image import Image, Segment, choose_entry
from pykvm.errors import ImageError
from pykvm.memory import layout
from pykvm.units import Gpa
from pykvm.x86 import Mode

__all__ = ["flat_image"]


def flat_image(
    data: bytes,
    *,
    name: str = "flat binary",
    mode: Mode | None = None,
    load: int | None = None,
    entry: int | str | None = None,
) -> Image:
    """Return ``data`` as an image that starts at its first byte, or at the linear address ``entry``.

    ``mode`` is real mode by default, ``load`` the guest-physical address of the first byte: by default 0x8000 for real
    mode, 0x100000 for the others. Raises: ImageError.
    """
    if not data:
        raise ImageError(f"{name}: is empty: there is no guest in it")
    mode = mode or Mode.REAL
    if load is None:
        load = layout.REAL_LOAD if mode is Mode.REAL else layout.LOAD
    segment = Segment(Gpa(load), data, len(data))
    return Image(name, (segment,), choose_entry(name, entry, load, ()), mode, format="flat binary")
