"""What is served, as systemd's units: as the profile has it, restarted when it changes, gone when it is not served any more."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from edge_bundles import NAME, NOW, Publisher, profile
from edge_machine import add_program, make_machine
from failing_disk import RecordedDisk, Unsynced
from torpor.edge.contents import of_kind
from torpor.edge.generations import Generation
from torpor.edge.layout import Layout
from torpor.edge.machine import Machine
from torpor.edge.node import Node
from torpor.edge.refused import Refused
from torpor.edge.systemd import Systemd, sandbox_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "publisher")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Where systemd runs, and systemctl writes down what it is asked."""
    machine = make_machine(tmp_path / "machine", "amd64", ("runsc", "containerd-shim-runsc-v1"))
    (machine.root / "run/systemd/system").mkdir(parents=True)
    add_program(machine.root, "systemctl", f'#!/bin/sh\necho "$@" >>{machine.root}/asked\n')
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / "sshd.service").write_text("not ours")
    return machine


def install(publisher: Publisher, tmp_path: Path, machine: Machine, version: str, **lines: str) -> Generation:
    bundle = publisher.bundle(version, last=float(version), description=profile("amd64", **lines))
    with Layout.at(bundle) as layout:
        return Node(tmp_path / "node", Unsynced(), machine).install(layout, NOW, publisher.root).generation


def place(tmp_path: Path, machine: Machine, generation: Generation) -> list[str]:
    """The lines that systemctl was asked; the units lie in `units`."""
    (machine.root / "asked").unlink(missing_ok=True)
    Systemd(tmp_path / "units", tmp_path / "node", machine, lambda text: None, Unsynced()).place(generation)
    asked = machine.root / "asked"
    return asked.read_text().splitlines() if asked.exists() else []


def test_a_unit_is_restarted_at_each_update_and_at_the_way_back(
    publisher: Publisher, tmp_path: Path, machine: Machine
) -> None:
    """Its text says what is served; the folder that it serves is the same link."""
    unit = tmp_path / "units" / "torpor-minilm.service"
    for version in ("1", "2"):
        asked = place(tmp_path, machine, install(publisher, tmp_path, machine, version))
        assert asked == ["daemon-reload", "enable torpor-minilm.service", "restart torpor-minilm.service"]
        assert f"minilm of {NAME} {version}\n" in unit.read_text()
        assert f"serve {tmp_path}/node/current/model/minilm --port 8080\n" in unit.read_text()
    place(tmp_path, machine, Node(tmp_path / "node", Unsynced(), machine).roll_back())
    assert f"minilm of {NAME} 1\n" in unit.read_text()


def test_a_model_that_is_not_served_any_more_loses_its_unit(
    publisher: Publisher, tmp_path: Path, machine: Machine
) -> None:
    """It is stopped before its unit goes; units of others stay."""
    (tmp_path / "units" / "torpor-old.service").write_text("")
    asked = place(tmp_path, machine, install(publisher, tmp_path, machine, "1"))
    assert asked[0] == "disable --now torpor-old.service"
    assert {path.name for path in (tmp_path / "units").iterdir()} == {"sshd.service", "torpor-minilm.service"}


def test_a_unit_that_has_gone_stays_gone_after_a_power_cut(
    publisher: Publisher, tmp_path: Path, machine: Machine
) -> None:
    """Also where no other is written; else systemd would start it for a model that is not there."""
    installed = install(publisher, tmp_path, machine, "1")
    bare = replace(installed, files=tuple(of_kind(installed.files, "profile")))
    (tmp_path / "units" / "torpor-minilm.service").write_text("")
    disk = RecordedDisk(tmp_path / "units")
    Systemd(tmp_path / "units", tmp_path / "node", machine, lambda text: None, disk).place(bare)
    disk.after_cut(len(disk.changes), None, 0.0, tmp_path / "after")
    assert [path.name for path in (tmp_path / "after").iterdir()] == ["sshd.service"]


def test_where_systemd_does_not_run_units_are_only_written(
    publisher: Publisher, tmp_path: Path, machine: Machine
) -> None:
    """Into an image that is being made, say."""
    shutil.rmtree(machine.root / "run/systemd/system")
    assert place(tmp_path, machine, install(publisher, tmp_path, machine, "1")) == []
    assert (tmp_path / "units" / "torpor-minilm.service").exists()


def test_what_systemctl_refuses_is_said(publisher: Publisher, tmp_path: Path, machine: Machine) -> None:
    add_program(machine.root, "systemctl", "#!/bin/sh\necho Access denied >&2\nexit 4\n")
    with pytest.raises(Refused, match="systemctl daemon-reload: Access denied"):
        place(tmp_path, machine, install(publisher, tmp_path, machine, "1"))


def test_a_bundle_without_a_profile_has_no_units(publisher: Publisher, tmp_path: Path, machine: Machine) -> None:
    """Nothing says how much memory and how many threads a model may have."""
    generation = install(publisher, tmp_path, machine, "1")
    bare = Generation(
        1, NAME, "1", "", NOW, None, tuple(f for f in generation.files if not f.path.startswith("profile/"))
    )
    with pytest.raises(Refused, match=f"{NAME} 1 has no profile"):
        place(tmp_path, machine, bare)


def test_a_folder_that_is_not_there_is_not_systemds(tmp_path: Path, machine: Machine) -> None:
    with pytest.raises(Refused, match="must be systemd's folder of units"):
        Systemd(tmp_path / "none", tmp_path / "node", machine, lambda text: None)


def test_a_sandbox_needs_runsc(publisher: Publisher, tmp_path: Path, machine: Machine) -> None:
    """It was there at the installation, and is gone."""
    generation = install(publisher, tmp_path, machine, "1", runtime_class='"gvisor"')
    (machine.root / "bin" / "runsc").unlink()
    with pytest.raises(Refused, match="this node has no runsc on its path"):
        place(tmp_path, machine, generation)


def test_what_is_dear_in_a_sandbox_is_avoided(publisher: Publisher, tmp_path: Path, machine: Machine) -> None:
    """Threads that spin on the cores of gVisor's kernel, memory that grows page by page."""
    place(tmp_path, machine, install(publisher, tmp_path, machine, "1", runtime_class='"gvisor"'))
    config = json.loads((tmp_path / "node/sandboxes/minilm/config.json").read_text())
    assert {"OMP_WAIT_POLICY=PASSIVE", "MALLOC_ARENA_MAX=1"} <= set(config["process"]["env"])
    place(tmp_path, machine, install(publisher, tmp_path, machine, "2"))
    unit = (tmp_path / "units/torpor-minilm.service").read_text()
    assert "OMP_WAIT_POLICY" not in unit
    assert "MALLOC_ARENA_MAX" not in unit


def test_a_sandbox_has_instances_and_no_threads_that_wait_for_each_other(
    publisher: Publisher, tmp_path: Path, machine: Machine
) -> None:
    """One for each core of the model's, outside of a sandbox one with all of them."""
    place(
        tmp_path,
        machine,
        install(publisher, tmp_path, machine, "1", runtime_class='"gvisor"', cores="4", memory='"2Gi"'),
    )
    environment = json.loads((tmp_path / "node/sandboxes/minilm/config.json").read_text())["process"]["env"]
    assert {"TORPOR_DEVICE=cpu,cpu,cpu", "TORPOR_THREADS=1"} <= set(environment)
    place(tmp_path, machine, install(publisher, tmp_path, machine, "2", cores="4"))
    unit = (tmp_path / "units/torpor-minilm.service").read_text()
    assert "TORPOR_THREADS=3\n" in unit
    assert "TORPOR_DEVICE" not in unit


@pytest.mark.parametrize("runtime_class", ["none", "gvisor"])
def test_systemd_finds_nothing_wrong_with_a_unit(
    publisher: Publisher, tmp_path: Path, machine: Machine, runtime_class: str
) -> None:
    """`systemd-analyze verify`, which also looks for the command."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze on the path")
    place(tmp_path, machine, install(publisher, tmp_path, machine, "1", runtime_class=f'"{runtime_class}"'))
    unit = tmp_path / "units" / "torpor-minilm.service"
    done = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert "torpor-minilm" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    unit.write_text(unit.read_text().replace("ExecStart=/", "ExecStart=/none/", 1))
    broken = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert broken.returncode != 0, "it would see a command that is not there"


def test_a_model_answers_from_a_sandbox(tmp_path: Path) -> None:
    """By a unit's config, run by runsc: the kernel is gVisor's, the model's folder read-only, nothing else there."""
    runsc = shutil.which("runsc")
    if runsc is None or os.geteuid() != 0:
        pytest.skip("no runsc on the path, or not root")
    torpor = str(Path(sys.executable).with_name("torpor"))
    (tmp_path / "root").mkdir()
    socket = 18471
    model = ROOT / "examples/mlp"
    arguments = [torpor, "serve", "/mnt/model", "--port", str(socket)]
    config = sandbox_config(model, arguments, {"TORPOR_MODEL_NAME": "mlp", "TORPOR_THREADS": 1})
    (tmp_path / "config.json").write_text(json.dumps(config))
    base = [runsc, f"--root={tmp_path}/state", "--platform=systrap", "--network=host", "--ignore-cgroups"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*base, "run", f"--bundle={tmp_path}", "torpor-mlp"], stdout=log, stderr=log)
    try:
        body = json.dumps({"instances": [[0.5] * 784]}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{socket}/v1/models/mlp:predict", body)
        began_s = time.monotonic()
        while True:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < began_s + 60, (tmp_path / "log").read_text()
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    assert len(json.load(answer)["predictions"]) == 1
                break
            except OSError:
                time.sleep(0.2)
        inside = [
            *base,
            "exec",
            "torpor-mlp",
            sys.executable,
            "-c",
            "import os; print(os.uname().release, os.listdir('/'))",
        ]
        said = subprocess.run(inside, capture_output=True, text=True, check=True).stdout
        assert "gvisor" in said
        assert "'var'" not in said
        subprocess.run([*base, "kill", "torpor-mlp", "TERM"], check=True)
        assert process.wait(30) == 0, "torpor drains, and runsc ends with it"
    finally:
        subprocess.run([*base, "delete", "--force", "torpor-mlp"], capture_output=True, check=False)
        process.kill()
        process.wait()
