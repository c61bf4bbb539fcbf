"""Assembly and C sources into ELF files, by GNU as, ld and gcc.

Real-mode code is linked for 0x8000 and all other code for 0x100000 (``pykvm.memory.layout``), unless somebody says
otherwise:

    .text                                    as     ld
    .rodata   guest.S  --(.include: -I)-->  guest.o  -->  guest.elf   two segments, one behind the other:
    .data                                                             .text .rodata | .data .bss
    .bss

The entry is ``_start``, or the start of .text. The package's build uses this module before any of pykvm's
dependencies are installed, so that it imports nothing but the standard library, and a CPU mode is its name here
("real", "long").

See: the manuals of GNU as (section "i386-Dependent", .code16) and GNU ld (section "Linker Scripts"). Leaves out the C
preprocessor: a ``.S`` file has ``.include``, ``.set`` and ``.macro``, and needs no compiler.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pykvm.boot.image import printable
from pykvm.errors import AssemblerError
from pykvm.memory.layout import LOAD, REAL_LOAD
from pykvm.units import MiB, format_size

__all__ = ["MODES", "TEXT_NAME", "AssemblerWarning", "build_directory", "build_source", "build_text", "mode_of"]

MODES = ("real", "protected", "paged", "pae", "long")
MODE_OF_WIDTH = {"16": "real", "32": "protected", "64": "long"}
TEXT_NAME = "<text>"  # what messages call a source that has no file

SOURCES = ("*.S", "*.s", "*.c")
TIME_LIMIT = 60  # seconds for one run of a tool; a macro can loop for a long time
MAX_OUTPUT = 256 * MiB  # of one file: a slip such as ".org 0xfffffff0" would fill the disk
MOST_LINES = 20  # of a tool's messages: one mistake may have hundreds of consequences

PACKAGES = {"as": "binutils", "ld": "binutils", "gcc": "gcc"}
AS_STDIN = "{standard input}"

# No red zone, for an interrupt would overwrite it; no SSE, for nobody has enabled it; nothing that needs a library.
CFLAGS = [
    *("-ffreestanding", "-fno-pic", "-fno-stack-protector", "-fno-asynchronous-unwind-tables"),
    *("-fcf-protection=none", "-mgeneral-regs-only", "-mno-red-zone", "-O2", "-g", "-Wall", "-Wextra", "-Werror"),
]
# -n: .data follows .rodata at once, not on a page of its own, which 16-bit code might not reach.
LDFLAGS = ["-n", "-nostdlib", "-static", "--build-id=none", "-z", "noexecstack"]

LINKER_SCRIPT = """\
ENTRY(_start)
PHDRS
{{
    code PT_LOAD FLAGS(5);
    data PT_LOAD FLAGS(6);
}}
SECTIONS
{{
    . = {load:#x};
    .text : {{ *(.text.start) *(.text .text.*) }} :code
    .rodata : {{ *(.rodata .rodata.*) }} :code
    .data : {{ *(.data .data.*) }} :data
    .bss : {{ *(.bss .bss.*) *(COMMON) }} :data
    /DISCARD/ : {{ *(.comment) *(.note*) *(.eh_frame*) }}
}}
"""


class AssemblerWarning(UserWarning):
    """What GNU as found odd in a source that it assembled all the same: its own words, at the source's own line."""


def build_source(
    source: Path, output: Path, *, mode: str | None = None, load: int | None = None, include: Sequence[Path] = ()
) -> str:
    """Assemble the file ``source`` and link it as the ELF file ``output``; return the mode's name.

    ``mode`` is by default what ``mode_of`` finds in it; ``load`` is the address to link for; ``include`` are folders
    for ``.include`` to search after the source's own. Raises: AssemblerError.
    """
    text = _read(source)
    mode = mode or mode_of(text)
    with _toolchain(mode, [text], [source.parent, *include], source.parent) as tools:
        tools.assemble(source)
        tools.link(output, tools.write_script(load))
    return mode


def build_text(
    text: str, output: Path, *, mode: str | None = None, load: int | None = None, include: Sequence[Path] = ()
) -> str:
    """Assemble ``text``, as ``build_source`` does a file; messages call it ``<text>``. Raises: AssemblerError."""
    mode = mode or mode_of(text)
    with _toolchain(mode, [text], include, Path()) as tools:
        tools.assemble_text(text)
        tools.link(output, tools.write_script(load))
    return mode


def build_directory(
    folder: Path, output: Path, *, mode: str, load: int | None = None, include: Sequence[Path] = ()
) -> None:
    """Assemble every ``*.S`` and compile every ``*.c`` of ``folder``, and link them as the ELF file ``output``.

    A ``*.ld`` there is the linker script, and then there is no ``load``. What the tools warn of is an error here.
    Raises: AssemblerError.
    """
    sources = sorted(path for pattern in SOURCES for path in folder.glob(pattern))
    if not sources:
        raise AssemblerError(f"{printable(str(folder))}: has no sources ({', '.join(SOURCES)})")
    assembly = [_read(path) for path in sources if path.suffix != ".c"]
    script = _own_script(folder, load)
    with _toolchain(mode, assembly, [folder, *include], folder, strict=True) as tools:
        for source in sources:
            if source.suffix == ".c":
                tools.compile(source)
            else:
                tools.assemble(source)
        tools.link(output, script or tools.write_script(load))


def mode_of(text: str) -> str:
    """Return the name of the mode that the assembly source ``text`` starts in.

    The first ``.code16``, ``.code32`` or ``.code64`` decides; without one it is "long".
    """
    widths = _code_widths(text)
    return MODE_OF_WIDTH[widths[0]] if widths else "long"


# A directive starts a statement: it follows the start of a line, a label or a semicolon. Comments and strings come
# first in the pattern, so that what stands in them is passed over.
_CODE = re.compile(
    r'/\*.*?\*/ | \#[^\n]* | "(?:\\.|[^"\\\n])*" | (?:^|[;:])[ \t]*\.code(?P<width>16|32|64)(?:gcc)?\b',
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


def _code_widths(text: str) -> list[str]:
    return [match["width"] for match in _CODE.finditer(text) if match["width"]]


def _read(source: Path) -> str:
    try:
        return source.read_bytes().decode(errors="replace")
    except OSError as error:
        raise AssemblerError(f"{printable(str(source))}: cannot be read: {error.strerror}") from error


def _own_script(folder: Path, load: int | None) -> Path | None:
    scripts = sorted(folder.glob("*.ld"))
    if len(scripts) > 1:
        raise AssemblerError(
            f"{printable(str(folder))}: has {len(scripts)} linker scripts (*.ld): only one can be used"
        )
    if scripts and load is not None:
        raise AssemblerError(f"{printable(str(scripts[0]))} says where the guest goes: leave the load address out")
    return scripts[0] if scripts else None


@contextmanager
def _toolchain(
    mode: str, sources: Sequence[str], include: Sequence[Path], home: Path, *, strict: bool = False
) -> Iterator[_Toolchain]:
    if mode not in MODES:
        raise AssemblerError(f"{mode!r} is no CPU mode: there are {', '.join(MODES)}")
    for tool in ("as", "ld"):  # before gcc, which needs them too and says so less clearly
        _find(tool)
    wide = mode == "long" or any("64" in _code_widths(text) for text in sources)
    folders = tuple(f"-I{folder.absolute()}" for folder in include)
    with tempfile.TemporaryDirectory(prefix="pykvm-") as scratch:
        yield _Toolchain(mode, wide, folders, home, Path(scratch), strict)


@dataclass(frozen=True, slots=True)
class _Toolchain:
    """One use of the tools: they run in ``home``, the folder of the sources, and objects collect in ``scratch``.

    ``wide`` says whether objects are ELF64; they are if any source has 64-bit code, for whatever mode it starts in: an
    ELF32 file cannot hold all of such code's references. ``strict`` makes warnings errors, and keeps the name of
    ``home`` out of the debugging information.
    """

    mode: str
    wide: bool
    include: Sequence[str]  # as options: -I...
    home: Path
    scratch: Path
    strict: bool

    def assemble(self, source: Path) -> None:
        # By its name alone, so that .include and .incbin look beside the source wherever pykvm was called from.
        self._assemble(source.name, f"./{source.name}")

    def assemble_text(self, text: str) -> None:
        self._assemble("text", "-", text + "\n")

    def compile(self, source: Path) -> None:
        width = "-m64" if self.wide else "-m16" if self.mode == "real" else "-m32"
        options = [width, *CFLAGS, *self.include, f"-ffile-prefix-map={self.home.absolute()}=."]
        self._run("gcc", [*options, "-c", f"./{source.name}", "-o", self._object(source.name)])

    def write_script(self, load: int | None) -> Path:
        """Return the linker script for a guest that has none of its own."""
        if load is None:
            load = REAL_LOAD if self.mode == "real" else LOAD
        if not 0 <= load < (1 << 52 if self.wide else 1 << 32):
            raise AssemblerError(f"{load:#x} is no address to link {self.mode}-mode code for")
        script = self.scratch / "guest.ld"
        script.write_text(LINKER_SCRIPT.format(load=load))
        return script

    def link(self, output: Path, script: Path) -> None:
        emulation = "elf_x86_64" if self.wide else "elf_i386"
        objects = [f"./{path.name}" for path in sorted(self.scratch.glob("*.o"))]
        options = ["-m", emulation, *LDFLAGS, "-T", str(script.absolute()), "-o", str(output.absolute())]
        self._run("ld", [*options, *objects], folder=self.scratch)

    def _assemble(self, name: str, source: str, text: str | None = None) -> None:
        options = ["--64" if self.wide else "--32", "-g", *self.include]
        if self.strict:
            options += ["--fatal-warnings", "--debug-prefix-map", f"{self.home.absolute()}=."]
        # A first source of one line sets the code width for the second, which may leave it to the mode.
        prelude = self.scratch / "prelude.s"
        prelude.write_text({"real": ".code16\n", "long": ".code64\n"}.get(self.mode, ".code32\n"))
        _warn(self._run("as", [*options, "-o", self._object(name), str(prelude), source], text))

    def _object(self, name: str) -> str:
        return str(self.scratch / f"{name}.o")

    def _run(self, tool: str, arguments: Sequence[str], text: str | None = None, folder: Path | None = None) -> str:
        """Run ``tool`` and return what it said. Raises: AssemblerError, with what it said, if it failed."""
        result = _run_tool(tool, arguments, text, folder or self.home)
        said = _tidy(result.stderr, self.home, self.scratch)
        if result.returncode == -signal.SIGXFSZ:
            raise AssemblerError(f"GNU {tool} was stopped: its output has more than {format_size(MAX_OUTPUT)}")
        if result.returncode:
            raise AssemblerError(said or f"GNU {tool} failed without a word (status {result.returncode})")
        return said


def _find(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        package = PACKAGES[tool]
        raise AssemblerError(f"GNU {tool} is not installed; on Debian or Ubuntu: sudo apt-get install {package}")
    return path


def _run_tool(tool: str, arguments: Sequence[str], text: str | None, folder: Path) -> subprocess.CompletedProcess[str]:
    limits = f"ulimit -c 0; ulimit -f {MAX_OUTPUT // 512}"
    command = ["/bin/sh", "-c", f'{limits}; exec "$@"', "sh", _find(tool), *arguments]
    try:
        return subprocess.run(
            command,
            input=text or "",
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=TIME_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise AssemblerError(f"GNU {tool} was stopped: it took more than {TIME_LIMIT} seconds") from None
    except (OSError, ValueError) as error:
        raise AssemblerError(f"GNU {tool} cannot be started: {error}") from error


def _warn(said: str) -> None:
    """Issue the warnings among the lines of ``said`` as coming from the line of the source that they are about."""
    for match in re.finditer(r"^(.+):(\d+): Warning: (.+)$", said, re.MULTILINE):
        warnings.warn_explicit(match[3], AssemblerWarning, match[1], int(match[2]))


# Lines that say nothing by themselves, for the next one has the place, or that are not for the reader of a guest.
_NOISE = re.compile(r"Assembler messages:$|: [Ii]n function |^(\S*ld: )?warning: cannot find entry symbol")


def _tidy(text: str, home: Path, scratch: Path) -> str:
    """Return a tool's messages with the files named as the user knows them."""
    shown = "" if home == Path() else f"{home}/"
    text = text.replace(AS_STDIN, TEXT_NAME).replace(f"{home.absolute()}/", shown).replace(f"{scratch}/", "")
    lines = [line.expandtabs() for line in text.splitlines() if line.strip() and not _NOISE.search(line)]
    # ld: guest.S.o:guest.S:3: undefined reference: the tool and the object add nothing to the source's line.
    tidy = [printable(re.sub(r"^(?:\S*ld: )?(?:[^:]*\.o:(?=.*:\d+:))?", "", line)) for line in lines]
    tidy = [shown + line.removeprefix("./") if line.startswith("./") else line for line in tidy]
    tidy = [line.replace(f"{shown}./", shown) for line in tidy]
    more = [f"... and {len(tidy) - MOST_LINES} more lines"] if len(tidy) > MOST_LINES else []
    return "\n".join([*tidy[:MOST_LINES], *more])
