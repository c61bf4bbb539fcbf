r"""AML, the byte code of ACPI's DSDT: as much of it as says which sleep states there are.

    Name (\_S5, Package () {0, 0})       08 5f 53 35 5f 12 04 02 00 00
                                         |  _  S  5  _  |  |  |  0  0
                                         NameOp         |  |  number of elements
                                                PackageOp  PkgLength: bytes from itself to the end

See: ACPI specification 4.0, chapter 19 ("ACPI Machine Language"). Leaves out everything that runs.
"""

from __future__ import annotations

from pykvm.errors import ConfigurationError

__all__ = ["integer", "name", "package"]

ZERO_OP, ONE_OP, NAME_OP, PACKAGE_OP = b"\x00", b"\x01", b"\x08", b"\x12"
PREFIXES = ((1, b"\x0a"), (2, b"\x0b"), (4, b"\x0c"), (8, b"\x0e"))  # of an integer with so many bytes
NAME_LENGTH = 4


def name(name: str, value: bytes) -> bytes:
    """Return the definition of ``name``, at most four characters, as ``value``. Raises: ConfigurationError."""
    if not 0 < len(name) <= NAME_LENGTH or not name.isascii():
        raise ConfigurationError(f"{name!r} is no name in AML: it takes 1 to {NAME_LENGTH} characters of ASCII")
    return NAME_OP + name.ljust(NAME_LENGTH, "_").encode() + value


def package(*elements: bytes) -> bytes:
    """Return a package of ``elements``, at most 255. Raises: ConfigurationError."""
    if len(elements) > 0xFF:
        raise ConfigurationError(f"a package has at most 255 elements, not {len(elements)}")
    content = bytes((len(elements),)) + b"".join(elements)
    return PACKAGE_OP + package_length(len(content)) + content


def integer(value: int) -> bytes:
    """Return ``value``, 0 to 2**64 - 1, as short as it goes. Raises: ConfigurationError."""
    if value in (0, 1):
        return ONE_OP if value else ZERO_OP
    for size, prefix in PREFIXES:
        if 0 <= value < 1 << 8 * size:
            return prefix + value.to_bytes(size, "little")
    raise ConfigurationError(f"{value} is no integer in AML: it takes 0 to 2**64 - 1")


def package_length(content: int) -> bytes:
    """Return PkgLength for ``content`` bytes after it; it counts itself. Raises: ConfigurationError.

    One byte holds up to 63; of more, its low four bits are the length's, and bits 7 and 6 say how many bytes follow.
    """
    if content + 1 < 1 << 6:
        return bytes((content + 1,))
    for following in (1, 2, 3):
        length = content + 1 + following
        if length < 1 << 4 + 8 * following:
            return bytes((following << 6 | length & 0x0F,)) + (length >> 4).to_bytes(following, "little")
    raise ConfigurationError(f"{content} bytes are too many for a package: it takes less than 2**28")
