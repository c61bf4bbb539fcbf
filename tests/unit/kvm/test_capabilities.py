"""The table of capabilities. Needs no /dev/kvm."""

from __future__ import annotations

from pykvm.kvm import CAPABILITIES, Cap, Kvm, survey


class KvmThatHas:
    """Answers KVM_CHECK_EXTENSION from a table."""

    def __init__(self, **answers: int) -> None:
        self._answers = {Cap[name]: answer for name, answer in answers.items()}

    def check_extension(self, cap: Cap) -> int:
        return self._answers.get(cap, 0)


def test_every_capability_stands_there_once_with_a_name_and_a_purpose() -> None:
    assert len({capability.cap for capability in CAPABILITIES}) == len(CAPABILITIES)
    assert len({capability.name for capability in CAPABILITIES}) == len(CAPABILITIES)
    assert all(capability.name and capability.purpose for capability in CAPABILITIES)


def test_a_survey_asks_for_every_capability_and_keeps_the_answers() -> None:
    kvm: Kvm = KvmThatHas(NR_MEMSLOTS=509, READONLY_MEM=1)  # type: ignore[assignment]  # a stand-in
    answers = {capability.cap: answer for capability, answer in survey(kvm)}
    assert list(answers) == [capability.cap for capability in CAPABILITIES]
    assert (answers[Cap.NR_MEMSLOTS], answers[Cap.READONLY_MEM], answers[Cap.IRQCHIP]) == (509, 1, 0)
