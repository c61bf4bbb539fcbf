"""pykvm.devices.state: what devices remember, and that a restored device goes on as the saved one did."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar, Never

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pykvm.devices
from pykvm.devices import (
    I8042,
    A20Gate,
    AcpiPm,
    DebugConsole,
    DebugExit,
    Doorbell,
    FwCfg,
    Hpet,
    IoApic,
    Keyboard,
    ManualClock,
    PciConfig,
    PcTestdev,
    PicPair,
    Pit,
    PostCode,
    ResetControl,
    Rtc,
    Serial,
    SystemControlPortA,
    Vga,
    ioapic,
)
from pykvm.devices.device import ByteRegisters, Device
from pykvm.devices.fields import (
    Bool,
    Bytes,
    Choice,
    Either,
    Flags,
    Json,
    Kind,
    Mask,
    Maybe,
    Member,
    Memory,
    Number,
    Queue,
    Record,
    Tuple,
)
from pykvm.devices.pic import CASCADE, IRQS
from pykvm.devices.scancodes import parse_keys
from pykvm.devices.serial import Msr
from pykvm.devices.state import Checked, Remembered, State, Stateful
from pykvm.errors import ConfigurationError

SECOND = 1_000_000_000

# ---- devices, each with its surroundings ----


class Hands(ManualClock):
    """A clock whose hands can be set, as the machine does before it restores devices."""

    def set(self, now: int) -> None:
        self._now = now
        self._alarms.clear()


@dataclass
class Rig:
    """Some devices that belong together, where a guest finds them, and a note of all that they do to others."""

    clock: Hands = field(default_factory=Hands)
    log: list[object] = field(default_factory=list)
    devices: dict[str, Stateful] = field(default_factory=dict)
    ports: list[tuple[Device, int]] = field(default_factory=list)  # a device, and how many offsets it has
    poke: Callable[[int], object] = lambda number: None  # what comes from outside

    def note(self, what: str) -> Callable[..., None]:
        return lambda *details: self.log.append((what, *details))

    def line(self, name: str) -> Wire:
        return Wire(self.log, name)

    def save(self) -> str:
        return json.dumps({name: device.save() for name, device in self.devices.items()})

    def restore(self, saved: str, now: int) -> None:
        self.clock.set(now)
        for name, state in json.loads(saved).items():
            self.devices[name].restore(state)

    def do(self, steps: list[Step]) -> list[object]:
        """Return what the guest reads, and all that goes out, meanwhile."""
        seen: list[object] = []
        self.log.clear()
        for verb, number, offset, data in steps:
            if verb == "wait":
                self.clock.advance(number)
            elif verb == "poke":
                seen.append(self.poke(number))
            elif self.ports:
                device, size = self.ports[number % len(self.ports)]
                if verb == "write":
                    device.write(offset % size, data)
                else:
                    seen.append(device.read(offset % size, len(data)))
        return [*seen, *self.log]


@dataclass
class Wire:
    log: list[object]
    name: str

    def set_level(self, level: bool) -> None:
        self.log.append((self.name, level))


Step = tuple[str, int, int, bytes]  # a verb; a port's number, nanoseconds, or what to poke; an offset; data


def writes(port: int, *pairs: tuple[int, int]) -> list[Step]:
    return [("write", port, offset, bytes((value,))) for offset, value in pairs]


def serial_rig() -> Rig:
    rig = Rig()
    port = Serial(rig.note("out"), None, rig.line("irq4"))

    def poke(number: int) -> object:
        match number % 3:
            case 0:
                return port.receive(bytes(range(number % 20)))
            case 1:
                port.receive_break()
            case _:
                port.set_modem_lines(Msr(number & 0xF0))
        return None

    rig.devices, rig.ports, rig.poke = {"serial": port}, [(port, 8)], poke
    return rig


def pic_rig() -> Rig:
    rig = Rig()
    pair = PicPair(rig.note("INTR"))

    def poke(number: int) -> object:
        irq, level = number % IRQS, bool(number & IRQS)
        if irq == CASCADE:
            return pair.acknowledge()
        pair.line(irq).set_level(level)
        return None

    rig.devices, rig.poke = {"pic": pair}, poke
    rig.ports = [(pair.master, 2), (pair.slave, 2), (pair.elcr, 2)]
    return rig


def pit_rig() -> Rig:
    rig = Rig()
    pit = Pit(rig.clock, rig.line("irq0"))
    rig.devices, rig.ports = {"pit": pit}, [(pit, 4), (pit.port61, 1)]
    return rig


def ioapic_rig() -> Rig:
    rig = Rig()
    chip = IoApic(rig.note("message"))
    rig.devices, rig.ports = {"ioapic": chip}, [(chip, 0x44)]
    rig.poke = lambda number: chip.line(number % ioapic.PINS).set_level(bool(number & 0x80))
    return rig


def pm_rig() -> Rig:
    rig = Rig()
    pm = AcpiPm(rig.clock, rig.line("sci"), rig.note("sleep"))
    actions: list[Callable[[], None]] = [pm.press_power_button, pm.rtc_alarm, lambda: pm.wake(True)]
    rig.devices, rig.ports = {"pm": pm}, [(pm, 12), (pm.smi_command, 2)]
    rig.poke = lambda number: actions[number % 3]()
    return rig


def rtc_rig() -> Rig:
    rig = Rig()
    chip = Rtc(rig.clock, rig.line("irq8"), datetime(2024, 2, 28, 23, 59, 58, 500_000, UTC), {}, rig.note("alarm"))
    rig.devices, rig.ports = {"rtc": chip}, [(chip, 2)]
    return rig


def hpet_rig() -> Rig:
    rig = Rig()
    chip = Hpet(rig.clock)
    rig.devices, rig.ports = {"hpet": chip}, [(chip, 0x110)]
    return rig


def keyboard_rig() -> Rig:
    rig = Rig()
    keyboard, a20 = Keyboard(), A20Gate()
    controller = I8042(keyboard, rig.line("irq1"), rig.note("reset"), a20)
    port_92 = SystemControlPortA(a20, rig.note("reset"))

    def poke(number: int) -> object:
        match number % 3:
            case 0:
                return keyboard.enqueue(parse_keys("ctrl-alt-delete pause enter")[: number % 9])
            case 1:
                keyboard.press("abc"[number % 2])
            case _:
                keyboard.release("print")
        return None

    rig.devices = {"keyboard": keyboard, "i8042": controller, "a20": a20, "port_92": port_92}
    rig.ports, rig.poke = [(controller.data, 1), (controller.status, 1), (port_92, 1)], poke
    return rig


def fw_cfg_rig() -> Rig:
    rig = Rig()
    descriptors = [b"\0\0\0\x02\0\0\0\x03" + bytes(8), b"\0\x20\0\x0a\0\0\0\x02" + bytes(8), b"\0\0\0\x04\0\0\0\x01"]
    device = FwCfg(
        lambda gpa, size: descriptors[gpa % 3].ljust(size, b"\0"),
        rig.note("dma"),
        ram_size=1 << 20,
        cpus=1,
        files={"opt/one": b"one", "opt/two": bytes(range(100))},
    )
    rig.devices, rig.ports = {"fw_cfg": device}, [(device, 12)]
    return rig


def simple_rig(device: Stateful, *ports: tuple[Device, int], poke: Callable[[int], object] = lambda n: None) -> Rig:
    return Rig(devices={device.name: device}, ports=list(ports), poke=poke)


def vga_rig() -> Rig:
    vga = Vga(lambda offset, size: bytes(size))
    return simple_rig(vga, (vga, 0x20))


def post_code_rig() -> Rig:
    device = PostCode()
    return simple_rig(device, (device, 1), poke=lambda number: device.codes)


def doorbell_rig() -> Rig:
    device = Doorbell()
    return simple_rig(device, (device, 8), poke=device.ring)


def pc_testdev_rig() -> Rig:
    device = PcTestdev(lambda line, level: None)
    return simple_rig(device, (device.ports, 12), (device.irq_lines, 24), (device.memory, 0x10000))


def pci_rig() -> Rig:
    rig = Rig()
    reset_control = ResetControl(rig.note("reset"))
    config = PciConfig(reset_control)
    rig.devices, rig.ports = {"reset_control": reset_control, "pci_config": config}, [(config, 8)]
    return rig


def debug_rig() -> Rig:
    rig = Rig()
    debug_exit, console = DebugExit(rig.note("exit")), DebugConsole(rig.note("out"))
    rig.devices = {"debug_exit": debug_exit, "debug_console": console}
    rig.ports = [(debug_exit, 4), (console, 1)]
    return rig


PIC_INITIALISED = [
    step for port in (0, 1) for step in writes(port, (0, 0x11), (1, 0x20 + 8 * port), (1, (4, 2)[port]), (1, 1), (1, 0))
]
IOAPIC_PIN = [("write", 0, 0, b"\x12"), ("write", 0, 0x10, b"\x31\x80\0\0"), ("poke", 0x81, 0, b"")]

# How to make each, and short stories that chance would hardly tell.
RIGS: dict[str, tuple[Callable[[], Rig], list[list[Step]]]] = {
    "serial": (serial_rig, [writes(0, (1, 0x0F), (4, 0x08), (2, 0xC1)), writes(0, (4, 0x1F), (0, 1), (0, 2))]),
    "pic": (pic_rig, [PIC_INITIALISED, writes(0, (0, 0x20)), writes(0, (0, 0x11), (1, 0x40))]),
    "pit": (
        pit_rig,
        [writes(0, (3, 0x34), (0, 0), (0, 1)), writes(0, (3, 0x36), (0, 99), (0, 9)), writes(0, (3, 0xC2), (3, 0xB1))],
    ),
    "ioapic": (ioapic_rig, [IOAPIC_PIN, [("write", 0, 0x40, b"\x31")], [("read", 0, 0x10, bytes(4))]]),
    "pm": (
        pm_rig,
        [
            [("wait", 2_400_000_000, 0, b"")],
            writes(0, (2, 1), (4, 1)),
            writes(0, (3, 5), (4, 1)),
            writes(1, (0, 2)),
            writes(0, (5, 0x34)),
        ],
    ),
    "rtc": (
        rtc_rig,
        [
            writes(0, (0, 0x0B), (1, 0x72)),
            writes(0, (0, 0x0A), (1, 0x2F)),
            [*writes(0, (0, 0x0C)), ("read", 0, 1, b"c")],
            writes(0, (0, 1), (1, 0xFF), (0, 3), (1, 0xFF), (0, 5), (1, 0xFF)),
            [("wait", SECOND // 2, 0, b"")],
        ],
    ),
    "hpet": (hpet_rig, [writes(0, (0x10, 1)), [("read", 0, 0xF0, bytes(8))]]),
    "keyboard": (keyboard_rig, [writes(0, (0, 0xED), (0, 7)), writes(1, (0, 0xD1)), writes(0, (0, 0xF0), (0, 1))]),
    "fw_cfg": (
        fw_cfg_rig,
        [
            [("write", 0, 0, b"\x20\0"), ("read", 0, 1, bytes(2))],
            [("write", 0, 8, bytes(4))],
            [("write", 0, 0, b"\x21\0"), ("write", 0, 8, bytes(4)), ("read", 0, 1, bytes(3))],
        ],
    ),
    "vga": (vga_rig, [writes(0, (0x14, 0x0E), (0x15, 7)), writes(0, (7, 3), (9, 1)), writes(0, (0, 0x10), (0, 4))]),
    "post_code": (post_code_rig, []),
    "doorbell": (doorbell_rig, []),
    "testdev": (pc_testdev_rig, []),
    "pci": (pci_rig, [[("write", 0, 0, b"\x04\x08\0\x80")], writes(0, (1, 6))]),
    "debug": (debug_rig, []),
}


def one_step() -> st.SearchStrategy[list[Step]]:
    verb = st.sampled_from(["read", "write", "write"])
    access = st.tuples(verb, st.integers(0, 2), st.integers(0, 0xFFFF), st.binary(min_size=1, max_size=8))
    byte = st.tuples(verb, st.integers(0, 2), st.integers(0, 0x20), st.binary(min_size=1, max_size=1))
    wait = st.tuples(st.just("wait"), st.integers(0, 100_000) | st.integers(0, SECOND // 50), st.just(0), st.just(b""))
    poke = st.tuples(st.just("poke"), st.integers(0, 0xFF), st.just(0), st.just(b""))
    return (access | byte | byte | wait | poke).map(lambda step: [step])


def stories(name: str) -> st.SearchStrategy[list[Step]]:
    told = RIGS[name][1]
    part = one_step() | st.sampled_from(told) if told else one_step()
    return st.lists(part, max_size=15).map(lambda parts: [step for part in parts for step in part])


# ---- the laws ----


@pytest.mark.parametrize("name", RIGS)
@settings(max_examples=30)
@given(data=st.data())
def test_a_restored_device_goes_on_as_the_saved_one_does(name: str, data: st.DataObject) -> None:
    make = RIGS[name][0]
    before, after, elsewhere = (data.draw(stories(name), label=label) for label in ("before", "after", "elsewhere"))
    original, other = make(), make()
    original.do(before)
    now, saved = original.clock.now(), original.save()
    expected, then = original.do(after), original.save()
    other.do(elsewhere)
    for _ in range(2):  # the second time over what the first time has left behind
        other.log.clear()
        other.restore(saved, now)
        assert other.log == []  # no line was driven, nobody was called
        assert other.save() == saved
        assert other.do(after) == expected
        assert other.save() == then


@pytest.mark.parametrize("name", RIGS)
@settings(max_examples=30)
@given(data=st.data())
def test_saving_changes_nothing(name: str, data: st.DataObject) -> None:
    make = RIGS[name][0]
    before, after = data.draw(stories(name)), data.draw(stories(name))
    watched, left_alone = make(), make()
    for rig in (watched, left_alone):
        rig.do(before)
    watched.save()
    assert watched.do(after) == left_alone.do(after)


def values(kind: Kind[Never]) -> st.SearchStrategy[object]:
    """Return what JSON may have for ``kind``."""
    match kind:
        case Number(first=first, last=last):
            return st.integers(first, last)
        case Mask(bits=bits):
            return st.integers(0, 2**64 - 1).map(lambda number: number & bits)
        case Bool():
            return st.booleans()
        case Choice(values=choices):
            return st.sampled_from(choices)
        case Member(members=members):
            return st.sampled_from(sorted(members))
        case Flags(all_flags=flags):
            return st.integers(0, flags.value).map(lambda number: number & flags.value)
        case Maybe(kind=inner):
            return st.none() | values(inner)
        case Tuple(kinds=kinds):
            return st.tuples(*map(values, kinds)).map(list)
        case Record(kinds=fields):
            return st.fixed_dictionaries({name: values(inner) for name, inner in fields.items()})
        case Either(records=records):
            return st.one_of(*map(values, records))
        case Memory(size=size):
            return st.binary(max_size=min(size, 300)).map(bytes.hex)
        case Bytes(limit=limit):
            return st.binary(max_size=limit).map(bytes.hex)
        case Queue(kind=inner, limit=limit):
            return st.lists(values(inner), max_size=min(limit, 20))
    raise AssertionError(f"no strategy for {kind}")


def states(device: Stateful) -> st.SearchStrategy[dict[str, object]]:
    fields = {name.lstrip("_"): values(kind) for name, kind in device.remembers.items()}
    parts = {name: states(part) for name, part in device._parts()}
    return st.fixed_dictionaries(fields | parts)


@pytest.mark.parametrize("name", RIGS)
@settings(max_examples=30)
@given(data=st.data())
def test_whatever_state_passes_the_check_no_access_raises_afterwards(name: str, data: st.DataObject) -> None:
    rig = RIGS[name][0]()
    for device in rig.devices.values():
        device.restore(device.check(data.draw(states(device))))
    rig.do(data.draw(stories(name)))
    for device in rig.devices.values():
        device.check(device.save())


# ---- what is refused ----

WRONG: tuple[Json, ...] = ("words", -(2**70), 2**70, [[]], {"a": 1})
ALL = [(name, device) for name, (make, _) in RIGS.items() for device in make().devices]


def leaves(state: State, path: tuple[str, ...] = ()) -> list[tuple[State, str, str]]:
    """Return each field of ``state``: the object that has it, its name, and where that is."""
    found = []
    for key, value in state.items():
        found.append((state, key, ": ".join((*path, key))))
        if isinstance(value, dict) and "count" not in value and "held_value" not in value:  # a phase of the PIT
            found += leaves(value, (*path, key))
    return found


def fresh(rig: str, name: str) -> Stateful:
    return RIGS[rig][0]().devices[name]


@pytest.mark.parametrize(("rig", "name"), ALL)
def test_a_missing_field_is_named(rig: str, name: str) -> None:
    device = fresh(rig, name)
    for number in range(len(leaves(device.save()))):
        state = device.save()
        owner, key, where = leaves(state)[number]
        del owner[key]
        with pytest.raises(ConfigurationError, match=f"^{device.name}: {where} is missing from the saved state"):
            device.restore(state)


@pytest.mark.parametrize(("rig", "name"), ALL)
def test_a_field_with_a_value_that_no_device_can_have_is_named(rig: str, name: str) -> None:
    device = fresh(rig, name)
    state = device.save()
    before = json.dumps(state)
    for owner, key, where in leaves(state):
        right = owner[key]
        for wrong in WRONG:
            owner[key] = wrong
            with pytest.raises(ConfigurationError, match=f"^{device.name}: {where}"):
                device.restore(state)
        owner[key] = right
    assert json.dumps(device.save()) == before


@pytest.mark.parametrize(("rig", "name"), ALL)
def test_a_field_that_the_device_does_not_have_is_named(rig: str, name: str) -> None:
    device = fresh(rig, name)
    with pytest.raises(ConfigurationError, match=f"^{device.name}: colour is in the saved state, and no field"):
        device.restore(device.save() | {"colour": 1})


@pytest.mark.parametrize(("rig", "name"), ALL)
def test_another_devices_state_is_refused(rig: str, name: str) -> None:
    device = fresh(rig, name)
    for other_rig, other_name in ALL:
        other = fresh(other_rig, other_name)
        if type(other) is type(device):
            continue
        with pytest.raises(ConfigurationError, match=f"^{device.name}: this is the state of a {type(other).__name__}"):
            device.restore(other.check(other.save()))
        if other.save().keys() != device.save().keys():
            with pytest.raises(ConfigurationError, match=f"^{device.name}: "):
                device.restore(other.save())


@pytest.mark.parametrize("wrong", [None, 1, "state", [], True])
def test_a_state_that_is_no_object_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^doorbell is .* in the saved state: it must be an object"):
        Doorbell().check(wrong)


@pytest.mark.parametrize("wrong", [True, 1.0, "1", None, [1]])
def test_a_number_is_a_number_and_nothing_like_it(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^doorbell: rings is .*a number from 0 to 4294967295"):
        Doorbell().check({"rings": wrong})


def test_a_phase_of_the_pit_is_one_of_two_and_its_count_is_checked() -> None:
    pit = fresh("pit", "pit")
    state = json.loads(json.dumps(pit.save()))
    state["counters_0"]["phase"] = {"mode": 2, "count": 0, "modulus": 65536, "origin": 0}
    with pytest.raises(ConfigurationError, match=r"^pit: counters_0: phase\.count is 0 .* from 1 to 65536"):
        pit.restore(state)


def test_a_key_that_no_keyboard_has_is_refused() -> None:
    state = Keyboard().save() | {"queue": [{"key": "any", "pressed": True}]}
    with pytest.raises(ConfigurationError, match=r"^keyboard: queue\[0\]\.key is 'any'"):
        Keyboard().restore(state)


# ---- declaring ----


class Blinker(Stateful):
    name = "blinker"
    remembers: ClassVar[Remembered] = {"_past": Bytes(3, rolling=True), "_colours": Queue(Choice("red", "green"), 2)}

    def __init__(self) -> None:
        self._past: deque[int] = deque(maxlen=3)
        self._colours: deque[str] = deque()


def test_a_class_that_does_not_say_what_it_remembers_cannot_be_made() -> None:
    with pytest.raises(ConfigurationError, match="Forgetful does not say what it remembers"):
        type("Forgetful", (Stateful,), {})


def test_a_device_that_remembers_nothing_has_an_empty_state() -> None:
    assert DebugExit(lambda value: None).save() == {}


def test_what_a_checked_state_holds_is_not_shared_with_the_device() -> None:
    blinker = Blinker()
    blinker._colours.append("red")
    checked = blinker.check(blinker.save())
    for _ in range(2):
        blinker.restore(checked)
        assert list(blinker._colours) == ["red"]
        blinker._colours.append("green")


def test_a_rolling_row_of_bytes_still_rolls_after_restoring() -> None:
    blinker = Blinker()
    blinker.restore({"past": "010203", "colours": []})
    blinker._past.append(4)
    assert blinker.save()["past"] == "020304"


def test_zeros_at_the_end_of_memory_are_not_written_down() -> None:
    testdev = PcTestdev(lambda line, level: None)
    testdev.memory.write(1, b"\x7f")
    assert testdev.memory.save() == {"memory": "007f"}


def test_a_checked_state_can_be_restored_into_any_device_of_its_class() -> None:
    first, second = Doorbell(), Doorbell()
    first.ring(7)
    checked = first.check(first.save())
    assert isinstance(checked, Checked)
    second.restore(checked)
    assert second.rings == 7


def test_a_guest_that_listened_to_the_serial_port_is_still_served_after_restoring() -> None:
    listening = Serial(lambda data: None)
    listening.write(1, b"\x01")
    calls: list[str] = []
    restored = Serial(lambda data: None)
    restored.on_listen = lambda: calls.append("listen")
    restored.restore(listening.save())
    assert calls == ["listen"]


def test_who_follows_the_io_apics_entries_hears_when_restoring_changes_them() -> None:
    programmed, calls = IoApic(lambda address, data: None), []
    programmed.write(0, b"\x10")
    programmed.write(0x10, b"\x31\0\0\0")
    restored = IoApic(lambda address, data: None, on_change=lambda: calls.append("change"))
    for _ in range(2):
        restored.restore(programmed.save())
    assert calls == ["change"]
    assert restored.entries == programmed.entries


# ---- nobody is forgotten ----


def test_every_device_class_of_the_package_is_stateful() -> None:
    for name in pykvm.devices.__all__:
        exported = getattr(pykvm.devices, name)
        if isinstance(exported, type) and hasattr(exported, "write") and exported not in (ByteRegisters, Device):
            assert exported.__name__ == "Bus" or issubclass(exported, Stateful), f"{name} cannot be saved"
