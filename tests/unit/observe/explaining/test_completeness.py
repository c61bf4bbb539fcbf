"""Everything that pykvm knows by name has an explanation."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Flag
from pathlib import Path

import pytest

from pykvm.devices import Bus, ManualClock
from pykvm.kvm import Cap, ExitReason, InternalErrorSuberror
from pykvm.machine.board import OPTIONAL_DEVICES, Board, Wishes
from pykvm.machine.interrupts import IrqchipKind, make_interrupts
from pykvm.memory import GuestMemory, layout, platform
from pykvm.observe.explaining import KINDS, explain, format_explanation
from pykvm.observe.explaining.addresses import PLACES
from pykvm.observe.explaining.errnos import ERRNOS
from pykvm.observe.explaining.exits import FOREIGN
from pykvm.observe.explaining.ioctls import IOCTLS
from pykvm.observe.explaining.leaves import LEAVES
from pykvm.observe.explaining.meanings import MEANINGS
from pykvm.observe.explaining.msrs import purpose
from pykvm.observe.explaining.places import Place, find
from pykvm.observe.explaining.ports import ELSEWHERE, PORTS
from pykvm.x86 import exceptions, msr
from pykvm.x86.cpuid_features import FEATURES

ROOT = Path(__file__).parents[4]
DECLARATIONS = ROOT / "csrc" / "kvm_decl.h"
PORTS_OF_A_BUS, ADDRESSES = 1 << 16, 1 << 52


def declared(section: str) -> list[str]:
    """Return the names that csrc/kvm_decl.h defines under the heading ``section``."""
    text = DECLARATIONS.read_text().split(f"/* ---- constants: {section} ---- */")[1].split("/* ----")[0]
    return re.findall(r"#define (KVM_\w+)", text)


@pytest.mark.parametrize("name", [name for name in declared("ioctls") if name != "KVM_API_VERSION"])
def test_every_declared_ioctl_is_explained(name: str) -> None:
    explanation = explain(["ioctl", name])
    assert explanation.title == f"ioctl {name}"
    assert explanation.what and explanation.when.startswith("On ")


def test_no_ioctl_is_explained_that_is_not_declared() -> None:
    assert set(IOCTLS) == set(declared("ioctls")) - {"KVM_API_VERSION"}


def test_ioctls_need_capabilities_and_give_errnos_that_exist() -> None:
    header = Path("/usr/include/linux/kvm.h").read_text()
    for name, ioctl in IOCTLS.items():
        assert set(ioctl.errors) <= set(ERRNOS), name
        assert not ioctl.capability or re.search(rf"#define {ioctl.capability}\s", header), name


@pytest.mark.parametrize("reason", ExitReason)
def test_every_exit_is_explained_by_number_and_by_name(reason: ExitReason) -> None:
    by_number = explain(["exit", str(reason.value)])
    assert by_number.title == f"exit {reason.value}: KVM_EXIT_{reason.name}"
    assert by_number.what and by_number.when and any(by_number.advice)
    assert by_number == explain(["exit", f"KVM_EXIT_{reason.name}"]) == explain(["exit", reason.name.lower()])


def test_exits_that_the_kernel_header_has_are_known() -> None:
    header = Path("/usr/include/linux/kvm.h").read_text()
    found = re.findall(r"#define KVM_EXIT_(\w+)\s+(\d+)\b", header)
    numbers = {name: int(number) for name, number in found if not name.startswith(("IO_", "HYPERV_", "XEN_"))}
    known = {reason.name: reason.value for reason in ExitReason} | {
        name: number for number, (name, _) in FOREIGN.items()
    }
    assert numbers.items() <= known.items()


@pytest.mark.parametrize("suberror", InternalErrorSuberror)
def test_every_suberror_is_explained(suberror: InternalErrorSuberror) -> None:
    explanation = explain(["internal-error", str(suberror.value)])
    assert explanation.title.endswith(f"KVM_INTERNAL_ERROR_{suberror.name}")
    assert explanation == explain([f"KVM_INTERNAL_ERROR_{suberror.name}"])


@pytest.mark.parametrize("cap", Cap)
def test_every_capability_is_explained(cap: Cap) -> None:
    explanation = explain([f"KVM_CAP_{cap.name}"])
    assert explanation.known
    assert explanation == explain(["cap", str(cap.value)])


@pytest.mark.parametrize("exception", exceptions.EXCEPTIONS, ids=lambda exception: str(exception.vector))
def test_every_exception_is_explained(exception: exceptions.CpuException) -> None:
    explanation = explain(["exception", str(exception.vector)])
    is_reserved = exception.kind is exceptions.ExceptionClass.RESERVED
    assert explanation.known is not is_reserved
    assert is_reserved or explanation.when
    if exception.mnemonic:
        assert explanation == explain(["exception", exception.mnemonic]) == explain([exception.mnemonic])


@pytest.mark.parametrize("name", sorted(msr._numbers()))
def test_every_named_msr_is_explained(name: str) -> None:
    assert purpose(msr.msr_name(msr.parse_msr(name)))
    assert explain(["msr", name]).known


@pytest.mark.parametrize("kind", MEANINGS, ids=lambda kind: kind.__name__)
def test_every_bit_of_a_register_has_a_meaning(kind: type[Flag]) -> None:
    assert set(MEANINGS[kind]) == set(kind.__members__)


@pytest.mark.parametrize("leaf", sorted({function for function, _, _ in FEATURES} | set(LEAVES)))
def test_every_leaf_with_features_is_explained(leaf: int) -> None:
    assert explain(["cpuid", str(leaf)]).known


def board_buses(irqchip: IrqchipKind) -> tuple[Bus, Bus]:
    """Return the two buses of a machine with all optional devices, without KVM."""
    pio, mmio = Bus("port", PORTS_OF_A_BUS), Bus("MMIO", ADDRESSES)
    clock = ManualClock()
    interrupts = make_interrupts(irqchip, object(), clock, lambda level: None)  # type: ignore[arg-type]
    nothing: Callable[..., None] = lambda *arguments: None  # noqa: E731 - a stand-in for many callbacks
    board = Board(
        pio,
        mmio,
        GuestMemory("1M"),
        interrupts,
        clock,
        Wishes(nothing, nothing, nothing, lambda: False, nothing),
        cpus=1,
        serial_output=nothing,
        serial_input=None,
        debugcon_output=nothing,
        screen_memory=lambda offset, size: bytes(size),
    )
    for name in OPTIONAL_DEVICES:
        board.add(name)
    return pio, mmio


@pytest.mark.parametrize("irqchip", [IrqchipKind.NONE, IrqchipKind.USER])
def test_every_range_of_the_boards_buses_is_explained(irqchip: IrqchipKind) -> None:
    for bus, kind, places in zip(board_buses(irqchip), ("port", "address"), (PORTS, PLACES), strict=True):
        for found in bus.ranges:
            for address in (found.base, found.end - 1):
                place = find(places, address)
                assert place is not None, str(found)
                explanation = explain([kind, hex(address)])
                assert explanation.known and explanation.title.startswith(f"{kind} {address:#x}: {place.title}")


def test_every_place_says_the_ports_that_its_device_has() -> None:
    pio, _ = board_buses(IrqchipKind.USER)
    claimed = {port for found in pio.ranges for port in range(found.base, found.end)}
    assert {port for place in PORTS for port in range(place.base, place.end)} == claimed


@pytest.mark.parametrize("places", [PORTS, PLACES])
def test_registers_lie_inside_their_place(places: tuple[Place, ...]) -> None:
    for place in places:
        for part in place.parts:
            assert part.offset >= 0 and part.offset + part.size <= place.size, (place.title, part.name)


def test_ports_that_other_pcs_have_are_none_of_ours() -> None:
    ours = {port for place in PORTS for port in range(place.base, place.end)}
    theirs = {port for place in ELSEWHERE for port in range(place.base, place.end)}
    assert not ours & theirs - {0x92}


@pytest.mark.parametrize("module", [layout, platform])
def test_every_fixed_address_is_explained(module: object) -> None:
    for name in module.__all__:  # type: ignore[attr-defined]
        value = getattr(module, name)
        if name.isupper() and value >= layout.BDA and "SIZE" not in name and not name.startswith(("PM", "RESET_C")):
            assert explain(["address", hex(value)]).known or name.endswith(("_START", "_END")), name


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_example_of_each_kind_is_explained(kind: object) -> None:
    example: str = kind.example  # type: ignore[attr-defined]
    explanation = explain(example.split())
    assert explanation.known and explanation.title and explanation.what and explanation.see
    assert format_explanation(explanation).startswith(explanation.title)


def test_commands_that_explanations_name_can_be_given() -> None:
    texts = [text for kind in KINDS for text in explain(kind.example.split()).see]
    texts += [text for reason in ExitReason for text in explain([f"KVM_EXIT_{reason.name}"]).see]
    commands = [text.removeprefix("pykvm explain ").split(":")[0] for text in texts if text.startswith("pykvm explain")]
    assert commands
    for command in commands:
        explain(command.split())
