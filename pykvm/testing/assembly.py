"""Assembly snippets in tests: assembled once, in either syntax, and with errors at the test's own line.

A snippet is assembled once a process, and once for all if there is a folder to keep the result in. A file there is
named by everything that decides what the assembler makes of the snippet:

    SHA-256 of (this format, source, mode, syntax, load address, which as and ld)   ->   SHA-256 of the ELF, the ELF

It is written under another name first and then renamed, so that processes side by side never see half a file. A
snippet that draws in other files (.include, .incbin) is kept for the process only: they may change. See:
``pykvm.boot.assembler``. Leaves out C.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
import linecache
import os
import re
import shutil
import sys
import tempfile
import textwrap
import tokenize
import warnings
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from pykvm.boot import AssemblerWarning, Image, assemble
from pykvm.boot.assembler import TEXT_NAME, mode_of
from pykvm.boot.detection import image_of
from pykvm.errors import AssemblerError, ConfigurationError, ImageError
from pykvm.x86 import Mode, to_mode

__all__ = ["Assembler", "Place", "caller"]

FORMAT = 1
SYNTAXES = {"att": "", "intel": ".intel_syntax noprefix; "}  # on the first line, so that line numbers stay
KEPT_IN_MEMORY = 1024
KEPT_ON_DISK = 4096
DIGEST = hashlib.sha256().digest_size
KIT = Path(__file__).parent

_BEGINS_BELOW = re.compile(r"""\w*(?:\"{3}|'{3})\\\n""")
_DRAWS_IN = re.compile(r"\.(?:include|incbin)\b")
_LINE = re.compile(rf"{TEXT_NAME}:(\d+)")


class Assembler:
    """Assembles snippets, and remembers them: in memory, and in ``folder`` if there is one."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._known: OrderedDict[str, Image] = OrderedDict()
        if folder is not None:
            _prune(folder)

    def assemble(
        self,
        source: str,
        *,
        mode: Mode | str | None = None,
        syntax: str = "att",
        load: int | None = None,
        place: Place | None = None,
    ) -> Image:
        """Return the guest that ``source`` is; arguments as for ``pykvm.assemble``, ``syntax`` is "att" or "intel".

        ``place`` is where messages say it stands.

        Raises: AssemblerError, in the assembler's words, at ``place``; ConfigurationError.
        """
        __tracebackhide__ = True
        if syntax not in SYNTAXES:
            raise ConfigurationError(f'assembly has the syntax "att" or "intel", not {syntax!r}')
        text = SYNTAXES[syntax] + source
        wanted = to_mode(mode_of(text) if mode is None else mode)
        key = _key(text, wanted, load)
        image = self._known.get(key) or self._read(key, text, wanted)
        if image is None:
            image = self._build(key, text, wanted, load, place or Place(source))
        self._known[key] = image
        self._known.move_to_end(key)
        if len(self._known) > KEPT_IN_MEMORY:
            self._known.popitem(last=False)
        return image

    def _build(self, key: str, text: str, mode: Mode, load: int | None, place: Place) -> Image:
        __tracebackhide__ = True
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                image = assemble(text, mode=mode, load=load)
            except AssemblerError as error:
                raise AssemblerError(place.explain(str(error))) from None
        for warning in caught:
            said = f"{warning.filename}:{warning.lineno}: {warning.message}"
            warnings.warn(place.explain(said), AssemblerWarning, stacklevel=4)
        if self._folder is not None and not caught and not _DRAWS_IN.search(text):
            _write(self._folder / key, image.elf)
        return image

    def _read(self, key: str, text: str, mode: Mode) -> Image | None:
        if self._folder is None or _DRAWS_IN.search(text):
            return None
        try:
            data = (self._folder / key).read_bytes()
            elf = data[DIGEST:]
            intact = hashlib.sha256(elf).digest() == data[:DIGEST]
            return replace(image_of(elf, name=TEXT_NAME, mode=mode), source=text) if intact else None
        except (OSError, ImageError):
            return None


def _key(text: str, mode: Mode, load: int | None) -> str:
    tools = [_identity(tool) for tool in ("as", "ld")]
    return hashlib.sha256(json.dumps([FORMAT, text, mode.value, load, tools]).encode()).hexdigest()


def _identity(tool: str) -> list[object]:
    """Return what changes when another version of ``tool`` is installed; asking the tool itself takes too long."""
    path = shutil.which(tool)
    if path is None:
        return []
    status = Path(path).stat()
    return [path, status.st_size, status.st_mtime_ns]


def _write(path: Path, elf: bytes) -> None:
    with contextlib.suppress(OSError):  # a full disk, a read-only one: the next process assembles it again
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(elf).digest() + elf)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _prune(folder: Path) -> None:
    """Remove the oldest files of ``folder`` if there are too many; another process may do so too."""
    with contextlib.suppress(OSError):
        paths = list(folder.iterdir())
        if len(paths) > KEPT_ON_DISK:
            for path in sorted(paths, key=lambda path: path.stat().st_mtime)[: len(paths) - KEPT_ON_DISK // 2]:
                path.unlink(missing_ok=True)


# ---- where a snippet stands ----


@dataclass(frozen=True, slots=True)
class Place:
    """Where the lines of the snippet ``source`` stand: in the file ``path``, at the numbers ``lines``, if known."""

    source: str
    path: str = ""
    lines: tuple[int, ...] = ()

    def line(self, number: int) -> str:
        """Return ``"tests/test_it.py:12"`` for line ``number`` of the snippet, 1 the first."""
        if number <= len(self.lines):
            return f"{self.path}:{self.lines[number - 1]}"
        return f"line {number} of the snippet"

    def translate(self, message: str) -> str:
        """Return ``message``, with the test's own lines in the place of the snippet's: ``<text>:3``."""
        return _LINE.sub(lambda found: self.line(int(found[1])), message)

    def explain(self, message: str) -> str:
        """Return an assembler's ``message``, translated, and with each line of the snippet that it names quoted."""
        lines = []
        for line in message.splitlines():
            lines.append(self.translate(line))
            named = _LINE.match(line)
            if named:
                lines.append(f"    {self._quote(int(named[1]))}")
        return "\n".join(lines)

    def _quote(self, number: int) -> str:
        lines = self.source.splitlines()
        return lines[number - 1].strip() if number <= len(lines) else ""


def caller(source: str) -> Place:
    """Return where ``source`` stands in the file of whoever called the kit, if it is a literal there."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and Path(frame.f_code.co_filename).parent == KIT:
        frame = frame.f_back
    if frame is None:
        return Place(source)
    path, line = frame.f_code.co_filename, frame.f_lineno
    text = "".join(linecache.getlines(path, frame.f_globals))
    with contextlib.suppress(SyntaxError, ValueError):
        lines = _lines_of(source, text, line)
        return Place(source, _shorten(path), lines)
    return Place(source)


def _lines_of(source: str, text: str, line: int) -> tuple[int, ...]:
    """Return the line numbers in the Python source ``text`` of the lines of ``source``, nearest to ``line``."""
    literals = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if source in (node.value, textwrap.dedent(node.value))
    ]
    if not literals:
        return ()
    # A call of many lines is at its first one, and a literal at the module's level is anywhere.
    literal = min(literals, key=lambda node: abs(node.lineno - line))
    return tuple(_count_lines(literal, text))


def _count_lines(literal: ast.Constant, text: str) -> list[int]:
    segment = ast.get_source_segment(text, literal) or ""
    numbers: list[int] = []
    at_start = True
    # In brackets, for the parts of a literal may stand on several lines.
    for token in tokenize.generate_tokens(io.StringIO(f"({segment})").readline):
        if token.type == tokenize.STRING:
            parts = ast.literal_eval(token.string).split("\n")
            first, step = _physical_lines(token.string, len(parts) - 1)
            for offset, part in enumerate(parts):
                at_start = at_start or offset > 0
                if at_start and (part or offset < len(parts) - 1):
                    numbers.append(literal.lineno + token.start[0] - 1 + first + step * offset)
                    at_start = False
    return numbers


def _physical_lines(token: str, newlines: int) -> tuple[int, int]:
    """Return on which of a string token's own lines its text begins, and how many its text's lines are apart."""
    first = 1 if _BEGINS_BELOW.match(token) else 0
    return (first, 1) if token.count("\n") - first == newlines else (0, 0)  # else newlines are written \n


def _shorten(path: str) -> str:
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
