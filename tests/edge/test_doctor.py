"""The doctor on machines that are ill in one way each: what it says, and the command that mends it."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from edge_bundles import DAY, NOW, Publisher, profile
from edge_machine import add_program, make_machine
from failing_disk import Unsynced
from torpor.edge.disk import Disk
from torpor.edge.doctor import Finding, findings
from torpor.edge.layout import Layout
from torpor.edge.machine import Machine
from torpor.edge.node import Node

GVISOR = ("runsc", "containerd-shim-runsc-v1")
DRIVER = {"proc__driver__nvidia__version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Wed\n"}
NOBODY = "  sl  local_address rem_address   st\n"


class Full(Disk):
    def free_bytes(self, path: Path) -> int:
        return 1 << 20


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    return Publisher(tmp_path_factory.mktemp("publisher"))


def served(publisher: Publisher, root: Path, machine: Machine, **lines: str) -> Node:
    """A node that serves a bundle with this profile."""
    release = str(len(list(publisher.folder.iterdir())))
    wanted = {"runtime_class": '"gvisor"', "memory": '"4Gi"', **lines}
    healthy = make_machine(root / "healthy", "amd64", GVISOR, **DRIVER)
    with Layout.at(publisher.bundle(release, description=profile("amd64", **wanted))) as layout:
        Node(root / "node", Unsynced(), healthy).install(layout, NOW, publisher.root)
    return Node(root / "node", Unsynced(), machine)


def test_a_healthy_node_has_no_findings(publisher: Publisher, tmp_path: Path) -> None:
    """With a bundle that is served; with none, that alone is said."""
    machine = make_machine(tmp_path / "machine", "amd64", GVISOR)
    assert list(findings(served(publisher, tmp_path, machine), machine, NOW)) == []
    (found,) = findings(Node(tmp_path / "empty"), machine, NOW)
    assert found.text == "nothing is served yet"
    assert "--root 1.root.json" in found.command


@pytest.mark.parametrize(
    ("machine", "subject", "said", "command"),
    [
        ({"proc__sys__kernel__osrelease": "4.9.337\n"}, "kernel", "kernel = 4.9.337, must be at least 4.15", "dist-upgrade"),
        ({"proc__sys__kernel__osrelease": None}, "kernel", "kernel = unknown", "dist-upgrade"),
        ({"sys__fs__cgroup__cgroup.controllers": None}, "cgroups", "not version 2", "systemd.unified_cgroup_hierarchy=1"),
        (
            {"sys__fs__cgroup__cgroup.controllers": "cpu io pids\n", "boot__firmware__cmdline.txt": "root=/dev/sda\n"},
            "cgroups", "no controller for memory", "sed -i '1 s/$/ cgroup_enable=memory/' /boot/firmware/cmdline.txt",
        ),
        ({"sys__fs__cgroup__cgroup.controllers": "cpu pids\n"}, "cgroups", "for memory", "/etc/default/grub"),
        ({"programs": ("runsc",)}, "runsc", "containerd-shim-runsc-v1 is not on the path", "install -m 755"),
        ({"etc__containerd__runsc.toml": 'platform = "kvm"\n'}, "runsc", "there is no /dev/kvm", "systrap"),
        ({"proc__meminfo": "MemTotal: 2000000 kB\nMemAvailable: 900000 kB\n"}, "memory", "must be 4Gi", "edge profile"),
        ({"proc__meminfo": "MemTotal: 3900000 kB\nMemAvailable: 90000 kB\n"}, "memory", "may be killed", "--sort=-rss"),
        ({"run__systemd__timesync__synchronized": None}, "clock", "nothing sets the clock", "timedatectl set-ntp true"),
        ({"proc__net__route": "Iface\tDestination\neth0\t0000FEA9\n"}, "route", "no default route", "dummy0"),
        ({"etc__resolv.conf": "search site\n"}, "dns", "names no server", "systemd-resolved"),
        (
            {"proc__net__tcp": f"{NOBODY}   0: 00000000:192B 00000000:0000 0A\n"},
            "ports", "port 6443, which K3s needs, is taken", "ss -ltnp 'sport = :6443'",
        ),
    ],
)  # fmt: skip
def test_each_illness_is_found_alone_with_what_mends_it(
    publisher: Publisher, tmp_path: Path, machine: dict[str, Any], subject: str, said: str, command: str
) -> None:
    here = make_machine(tmp_path / "machine", "amd64", **{"programs": GVISOR, **machine})
    (found,) = findings(served(publisher, tmp_path, here), here, NOW)
    assert found.subject == subject
    assert said in found.text
    assert command in found.command


def one(publisher: Publisher, tmp_path: Path, machine: Machine, **lines: str) -> list[Finding]:
    return list(findings(served(publisher, tmp_path, machine, **lines), machine, NOW))


def test_what_a_profile_does_not_ask_for_is_not_missed(publisher: Publisher, tmp_path: Path) -> None:
    """No gVisor, no link: then neither runsc nor a name server is; an old kernel still warns."""
    files = {"etc__resolv.conf": None, "proc__sys__kernel__osrelease": "4.9.0\n"}
    machine = make_machine(tmp_path / "machine", "amd64", **files)  # type: ignore[arg-type]
    (found,) = one(publisher, tmp_path, machine, runtime_class='"none"', link='"none"')
    assert (found.subject, found.level) == ("kernel", "warning")


def test_a_driver_is_one_that_the_sandbox_passes_through(publisher: Publisher, tmp_path: Path) -> None:
    """Not there; there and unknown to runsc; known. A runsc that does not say, or does not run, is believed."""
    for number, (files, script, said) in enumerate(
        [
            ({}, "", "no NVIDIA driver is loaded"),
            (DRIVER, "echo 550.54.15; echo 575.57.08", "driver = 580.65.06, must be one that runsc knows"),
            (DRIVER, "echo 550.54.15; echo 580.65.06", ""),
            (DRIVER, "exit 1", ""),
            (DRIVER, None, ""),
        ]
    ):
        folder = tmp_path / str(number)
        machine = make_machine(folder / "machine", "amd64", GVISOR, **files)
        add_program(
            folder / "machine", "runsc", f"#!/bin/sh\n{script}\n" if script is not None else "another machine's"
        )
        found = one(publisher, folder, machine, accelerator='"cuda"')
        assert [said in each.text for each in found] == [True] * bool(said)


def test_a_clock_that_has_just_started_is_given_time(publisher: Publisher, tmp_path: Path) -> None:
    files = {"run__systemd__timesync__synchronized": None, "proc__uptime": "30.0 20.0\n"}
    machine = make_machine(tmp_path / "machine", "amd64", GVISOR, **files)
    assert one(publisher, tmp_path, machine) == []


def test_a_clock_behind_what_was_accepted_is_an_error(publisher: Publisher, tmp_path: Path) -> None:
    """And metadata that has expired is a warning: what is served goes on."""
    machine = make_machine(tmp_path / "machine", "amd64", GVISOR)
    node = served(publisher, tmp_path, machine)
    (behind,) = findings(node, machine, NOW - timedelta(hours=1))
    assert (behind.subject, behind.level) == ("clock", "error")
    (expired,) = findings(node, machine, NOW + 100 * DAY)
    assert (expired.subject, expired.level) == ("metadata", "warning")
    assert "targets" in expired.text


def test_a_disk_without_room_for_an_update_is_said_before_it(publisher: Publisher, tmp_path: Path) -> None:
    machine = make_machine(tmp_path / "machine", "amd64", GVISOR)
    (found,) = findings(served(publisher, tmp_path, machine), machine, NOW, Full())
    assert found.subject == "disk"
    assert "may need" in found.text


def test_a_port_of_ours_is_no_finding(publisher: Publisher, tmp_path: Path) -> None:
    """Once K3s is there its ports are its own; the model's port is looked at until something is served."""
    listening = f"{NOBODY}   0: 00000000:192B 00000000:0000 0A\n   1: 00000000:1F90 00000000:0000 0A\n"
    machine = make_machine(tmp_path / "machine", "amd64", GVISOR, proc__net__tcp=listening)
    (machine.root / "var/lib/rancher/k3s").mkdir(parents=True)
    assert one(publisher, tmp_path, machine) == []
    empty = findings(Node(tmp_path / "empty"), machine, NOW)
    assert [found.text for found in empty if found.subject == "ports"] == [
        "port 8080, which the model's unit needs, is taken"
    ]


def test_damage_is_found_in_what_is_served_and_in_the_way_back(publisher: Publisher, tmp_path: Path) -> None:
    """And in the node's own state."""
    machine = make_machine(tmp_path / "machine", "amd64", GVISOR)
    node = served(publisher, tmp_path, machine)
    served_again = publisher.bundle("again", last=5.0, description=profile("amd64", runtime_class='"gvisor"'))
    with Layout.at(served_again) as layout:
        Node(tmp_path / "node", Unsynced(), machine).install(layout, NOW)
    for number in (1, 2):
        (tmp_path / "node" / "generations" / str(number) / "model/minilm/model.toml").write_text("")
    (tmp_path / "node" / "node.json").write_text("{")
    found = {each.subject: each for each in findings(node, machine, NOW)}
    assert found.keys() == {"bundle", "rollback", "state"}
    assert "model.toml must have" in found["bundle"].text
    assert "node.json.damaged" in found["state"].command
    (tmp_path / "node" / "generations" / "2" / "seal.json").unlink()
    assert "its seal cannot be read" in next(findings(node, machine, NOW)).text


def test_a_profile_that_is_damaged_is_said_once(publisher: Publisher, tmp_path: Path) -> None:
    """As the file of the bundle that it is; what it asked for is not known any more."""
    machine = make_machine(tmp_path / "machine", "amd64", GVISOR)
    node = served(publisher, tmp_path, machine, accelerator='"cuda"')
    described = tmp_path / "node/current/profile/node/node.toml"
    for text in ("", None):
        described.write_text(text) if text is not None else described.unlink()
        (found,) = findings(node, machine, NOW)
        assert (found.subject, found.level) == ("bundle", "error")
        assert "node.toml" in found.text
