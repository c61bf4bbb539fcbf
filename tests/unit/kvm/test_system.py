"""Why /dev/kvm cannot be used, in words, with the command that mends it. Needs no /dev/kvm."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pykvm.errors import KvmUnavailableError
from pykvm.kvm import Kvm
from pykvm.kvm.system import why_unavailable


def test_a_missing_device_is_named_and_the_module_to_load(tmp_path: Path) -> None:
    path = str(tmp_path / "kvm")
    with pytest.raises(KvmUnavailableError) as caught:
        Kvm.open(path)
    assert caught.value.reason == f"{path} does not exist"
    assert "sudo modprobe kvm_intel" in caught.value.remedy
    assert str(caught.value) == f"{caught.value.reason}\n{caught.value.remedy}"


def test_another_device_is_not_taken_for_kvm() -> None:
    with pytest.raises(KvmUnavailableError, match="/dev/null is not a KVM device: KVM_GET_API_VERSION"):
        Kvm.open("/dev/null")


def test_a_failed_open_leaks_no_descriptor() -> None:
    before = len([*Path("/proc/self/fd").iterdir()])
    for path in ("/dev/null", "/nonexistent"):
        with pytest.raises(KvmUnavailableError):
            Kvm.open(path)
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_a_directory_gets_the_systems_own_words(tmp_path: Path) -> None:
    with pytest.raises(KvmUnavailableError, match="cannot be opened: Is a directory"):
        Kvm.open(str(tmp_path))


@pytest.mark.parametrize("error", [errno.ENODEV, errno.ENXIO])
def test_a_node_without_a_driver_says_to_load_it(error: int) -> None:
    why = why_unavailable("/dev/kvm", error)
    assert why.reason == "/dev/kvm exists, but no KVM is behind it"
    assert "modprobe" in why.remedy


@pytest.mark.parametrize("error", [errno.EACCES, errno.EPERM])
def test_without_permission_the_remedy_is_a_command_for_this_file(tmp_path: Path, error: int) -> None:
    node = tmp_path / "kvm"
    node.touch(mode=0o600)
    why = why_unavailable(str(node), error)
    assert why.reason.startswith(f"{node} may not be opened: permission denied for ")
    assert why.remedy == f"sudo chmod a+rw {node}"


def test_a_node_that_a_group_may_open_says_to_join_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = tmp_path / "kvm"
    node.touch()
    node.chmod(0o660)
    monkeypatch.setattr("pykvm.kvm.system.grp.getgrgid", lambda gid: type("Group", (), {"gr_name": "kvm"}))
    assert why_unavailable(str(node), errno.EACCES).remedy.startswith("sudo usermod --append --groups kvm ")


def test_without_a_node_to_look_at_the_remedy_is_still_a_command() -> None:
    assert why_unavailable("/nonexistent", errno.EACCES).remedy == "sudo chmod a+rw /nonexistent"


def test_a_user_without_a_name_is_called_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError

    monkeypatch.setattr("pykvm.kvm.system.getpass.getuser", nameless)
    assert why_unavailable("/nonexistent", errno.EACCES).reason.endswith(f"denied for user {os.getuid()}")
