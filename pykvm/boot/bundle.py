"""The bundled guests: how they are built from ``guests/``, and how they are found in the installed package.

A guest's folder holds its sources and an ``expected.toml`` that says how to start it and what it does; the build puts
the assembled ELF beside a copy of both. Building needs GNU as and ld (and gcc for guests in C), running one does not.
Leaves out running them.
"""

from __future__ import annotations

import difflib
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pykvm.boot.assembler import build_directory, build_source
from pykvm.errors import ImageError

__all__ = [
    "BUNDLE",
    "BundledGuest",
    "Expectation",
    "build_all",
    "bundled_guests",
    "find_guest",
    "is_bundled",
    "probe_settings",
    "read_guest",
    "suggest",
]

BUNDLE = Path(__file__).parent.parent / "_guests"
SETTINGS = "expected.toml"
IMAGE = "guest.elf"


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a guest does when all is well.

    ``stop`` is "halted", "debug-exit", "shutdown" (a triple fault), "crash" or "timeout"; ``exits`` are names of exit
    classes that must appear; ``exit_code`` is None for a guest that does not write to the debug-exit port.
    """

    status: int
    stop: str
    serial: str
    exits: tuple[str, ...] = ()
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class BundledGuest:
    """A guest of ``guests/``: its name (``09-hello``), how to start it, and what to expect.

    ``mode`` and ``ring`` are the state the CPU starts in, ``memory`` a size such as "1M", ``timeout`` seconds,
    ``needs`` the probes that must succeed on a host for the guest to run there, ``input`` what its serial port
    receives, ``keys`` what is typed on its keyboard (see ``pykvm.devices.parse_keys``), ``irqchip``, ``cpus`` and
    ``devices`` what ``Machine`` takes under these names, and ``msrs`` what is in MSRs that the host answers for.
    """

    name: str
    folder: Path
    summary: str
    mode: str
    ring: int
    memory: str
    timeout: float
    needs: tuple[str, ...]
    input: str
    expect: Expectation = field(repr=False)
    keys: str = ""
    irqchip: str = "none"
    cpus: int = 1
    devices: tuple[str, ...] = ()
    msrs: tuple[tuple[int, int], ...] = ()

    @property
    def image(self) -> Path:
        """Return the path of the assembled ELF."""
        return self.folder / IMAGE

    @property
    def short_name(self) -> str:
        """Return the name without its number: ``hello`` for ``09-hello``."""
        return self.name.partition("-")[2]


def bundled_guests(bundle: Path = BUNDLE) -> list[BundledGuest]:
    """Return the guests that come with pykvm, in the book's order.

    Raises: ImageError if the package was installed without them.
    """
    if not bundle.is_dir():
        raise ImageError(f"the bundled guests are missing ({bundle.name}): install pykvm again with pip install .")
    return [read_guest(path.parent) for path in sorted(bundle.glob(f"*/{SETTINGS}"))]


def find_guest(name: str, bundle: Path = BUNDLE) -> BundledGuest | None:
    """Return the guest called ``name``: ``09-hello``, ``hello`` or ``09``; None if there is none."""
    for guest in bundled_guests(bundle):
        if name in (guest.name, guest.short_name, guest.name.partition("-")[0]):
            return guest
    return None


def is_bundled(name: str, bundle: Path = BUNDLE) -> bool:
    """Return whether ``name`` is all of a bundled guest's name; reads no guest."""
    return bundle.is_dir() and any(path.name == name and (path / SETTINGS).is_file() for path in bundle.iterdir())


def suggest(name: str, bundle: Path = BUNDLE) -> list[str]:
    """Return the names of bundled guests that look like ``name``, the best first."""
    guests = bundled_guests(bundle)
    names = {candidate: guest.name for guest in guests for candidate in (guest.short_name, guest.name)}
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    return list(dict.fromkeys(names[match] for match in close))


def read_guest(folder: Path) -> BundledGuest:
    """Return the guest in ``folder``, read from its ``expected.toml``. Raises: ImageError."""
    path = folder / SETTINGS
    try:
        settings = tomllib.loads(path.read_text())
        expect = settings["expect"]
        return BundledGuest(
            name=folder.name,
            folder=folder,
            summary=settings["summary"],
            mode=settings["mode"],
            ring=settings.get("ring", 0),
            memory=settings.get("memory", "1M"),
            timeout=float(settings["timeout"]),
            needs=tuple(settings.get("needs", ())),
            input=settings.get("input", ""),
            expect=Expectation(
                status=expect["status"],
                stop=expect["stop"],
                serial=expect["serial"],
                exits=tuple(expect.get("exits", ())),
                exit_code=expect.get("exit_code"),
            ),
            keys=settings.get("keys", ""),
            irqchip=settings.get("irqchip", "none"),
            cpus=int(settings.get("cpus", 1)),
            devices=tuple(settings.get("devices", ())),
            msrs=tuple((int(index, 0), int(value)) for index, value in settings.get("msr", {}).items()),
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ImageError(f"{folder.name}/{SETTINGS} cannot be used: {error!r}") from error


def build_all(source: Path, output: Path) -> None:
    """Assemble the guests below ``source``, and the probes in ``source/probes``, into ``output``, made anew."""
    shutil.rmtree(output, ignore_errors=True)
    library = source / "lib"
    shutil.copytree(library, output / "lib")
    for folder in _guest_folders(source):
        target = output / folder.name
        shutil.copytree(folder, target)
        build_directory(folder, target / IMAGE, mode=read_guest(folder).mode, include=(library,))
    probes = output / "probes"
    probes.mkdir()
    for path in sorted((source / "probes").glob("*.S")):
        build_source(path, probes / f"{path.stem}.elf", mode=probe_settings(path)["mode"], include=(library,))
        shutil.copy(path, probes)


def probe_settings(path: Path) -> dict[str, str]:
    """Return the ``key: value`` lines of the comment that opens a probe's source: mode, ring, proves."""
    header = path.read_text().partition("*/")[0]
    pairs = (line.strip(" */").partition(":") for line in header.splitlines())
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def _guest_folders(source: Path) -> Iterator[Path]:
    return (path.parent for path in sorted(source.glob(f"*/{SETTINGS}")))
