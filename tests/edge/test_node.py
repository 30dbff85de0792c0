"""A node: installations, the way back, what stops them, and power cuts between any two changes."""

import errno
import fcntl
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from edge_bundles import DAY, NAME, NOW, Publisher, files, packed, profile
from edge_machine import make_machine
from failing_disk import FullDisk, RecordedDisk, Unsynced, steps
from torpor.edge.disk import Disk
from torpor.edge.layout import Layout
from torpor.edge.machine import Machine
from torpor.edge.node import SPARE_BYTES, Installed, Node
from torpor.edge.refused import Refused


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    publisher = Publisher(tmp_path_factory.mktemp("publisher"))
    for number in (1, 2, 3):
        publisher.bundle(str(number), last=float(number))
    return publisher


def install(
    publisher: Publisher, version: str, root: Path, disk: Disk | None = None, word: str = "", bundle: Path | None = None
) -> Installed:
    with Layout.at(bundle or publisher.folder / f"{NAME}-{version}") as layout:
        return Node(root, disk or Unsynced()).install(layout, NOW, publisher.root, word)


def given(publisher: Publisher, version: str) -> dict[str, bytes]:
    """The inputs as a node has them."""
    folder = publisher.folder / f"inputs-{NAME}-{version}"
    return {
        f"model/minilm/{name}": (folder / "model" / name).read_bytes() for name in ("model.safetensors", "model.toml")
    } | {
        "image/runtime/runtime.tar": (folder / "image" / "runtime.tar").read_bytes(),
        f"manifest/{NAME}/service.yaml": (folder / "manifest" / "service.yaml").read_bytes(),
        "profile/node/node.toml": (folder / "profile" / "node.toml").read_bytes(),
    }


def serves(root: Path, publisher: Publisher, version: str) -> bool:
    """To the byte, and by its own check."""
    node = Node(root)
    current = node.current()
    if current is None or current.version != version:
        return False
    node.generations.check(current)
    found = files(root)
    return all(found[path] == data for path, data in given(publisher, version).items())


def test_a_bundle_is_installed_updated_and_taken_back(publisher: Publisher, tmp_path: Path) -> None:
    """`current` is one link, which moves."""
    root = tmp_path / "node"
    install(publisher, "1", root)
    assert serves(root, publisher, "1")
    done = install(publisher, "2", root)
    assert serves(root, publisher, "2")
    assert done.bytes.found > 8 * 1024 > done.bytes.moved
    assert Node(root, Unsynced()).roll_back().version == "1"
    assert serves(root, publisher, "1")
    assert Node(root).state() is not None


def test_what_is_neither_served_nor_before_is_removed(publisher: Publisher, tmp_path: Path) -> None:
    root = tmp_path / "node"
    for version in ("1", "2", "3"):
        install(publisher, version, root)
    assert Node(root).generations.numbers() == [2, 3]
    assert not (root / "staging").exists()


def test_the_same_bundle_again_changes_nothing(publisher: Publisher, tmp_path: Path) -> None:
    root = tmp_path / "node"
    install(publisher, "1", root)
    before = os.readlink(root / "current")
    done = install(publisher, "1", root)
    assert not done.is_new
    assert os.readlink(root / "current") == before
    state = Node(root).state()
    assert state is not None
    assert len(state.history) == 1


def test_a_damaged_generation_is_mended_by_the_same_bundle(publisher: Publisher, tmp_path: Path) -> None:
    """What is whole in it is taken from there, what is not from the bundle."""
    root = tmp_path / "node"
    install(publisher, "1", root)
    file = root / "current" / "model" / "minilm" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    done = install(publisher, "1", root)
    assert done.is_new
    assert done.bytes.moved == 1024
    assert serves(root, publisher, "1")


def test_a_generation_without_its_seal_is_replaced(publisher: Publisher, tmp_path: Path) -> None:
    """An update mends it; the way back is gone, since nothing says what was before."""
    root = tmp_path / "node"
    install(publisher, "1", root)
    for text in ("", "{}", '{"before": null, "installed": "2026-01-01T00:00:00Z"}'):
        (root / "current" / "seal.json").write_text(text)
        with pytest.raises(Refused):
            Node(root).current()
        assert install(publisher, "1", root).generation.before is None
        assert serves(root, publisher, "1")
    (root / "current" / "seal.json").unlink()
    with pytest.raises(Refused, match="its seal cannot be read: No such file"):
        Node(root).current()
    assert install(publisher, "1", root).generation.before is None
    (root / "current").unlink()
    (root / "current").symlink_to("elsewhere")
    with pytest.raises(Refused, match="must lead to a generation"):
        Node(root).current()
    install(publisher, "2", root)
    assert serves(root, publisher, "2")


def test_no_way_back_to_what_is_damaged_or_not_there(publisher: Publisher, tmp_path: Path) -> None:
    root = tmp_path / "node"
    with pytest.raises(Refused, match="node serves nothing"):
        Node(root).roll_back()
    assert not root.exists()
    install(publisher, "1", root)
    with pytest.raises(Refused, match="no generation before") as refused:
        Node(root).roll_back()
    assert refused.value.reason == "state"
    install(publisher, "2", root)
    (root / "generations" / "1" / "model" / "minilm" / "model.toml").write_text("[mudel]\n")
    with pytest.raises(Refused, match=r"model\.toml is not what was installed"):
        Node(root).roll_back()
    (root / "generations" / "1" / "model" / "minilm" / "model.toml").write_text("[model]\n\n")
    with pytest.raises(Refused, match=r"model\.toml must have 8 bytes"):
        Node(root).roll_back()
    (root / "generations" / "1" / "model" / "minilm" / "model.toml").unlink()
    with pytest.raises(Refused, match=r"model\.toml cannot be read"):
        Node(root).roll_back()
    assert serves(root, publisher, "2")


def test_a_thin_bundle_needs_what_it_was_made_against(publisher: Publisher, tmp_path: Path) -> None:
    """It has the new parts and the lists; the rest is the node's."""
    found = publisher.thin("1", "2", tmp_path / "thin.tar")
    with pytest.raises(Refused, match="made for a node that has another version") as refused:
        install(publisher, "", tmp_path / "bare", bundle=tmp_path / "thin.tar")
    assert refused.value.reason == "missing"
    assert Node(tmp_path / "bare").current() is None
    root = tmp_path / "node"
    # The repository has gone on since, so that the first one is installed as of its own time.
    install(publisher, "1", root)
    done = install(publisher, "", root, bundle=tmp_path / "thin.tar")
    assert done.bytes.moved == found.moved_bytes
    assert serves(root, publisher, "2")


def test_a_part_that_one_generation_has_lost_comes_from_the_other(publisher: Publisher, tmp_path: Path) -> None:
    """A thin bundle has it not. A whole file may be gone, too."""
    publisher.thin("2", "3", tmp_path / "thin.tar")
    root = tmp_path / "node"
    for version in ("1", "2"):
        install(publisher, version, root)
    weights = [root / "generations" / number / "model" / "minilm" / "model.safetensors" for number in ("1", "2")]
    for file, at in zip(weights, (1500, 3500), strict=True):
        data = bytearray(file.read_bytes())
        data[at] ^= 1
        file.write_bytes(data)
    install(publisher, "", root, bundle=tmp_path / "thin.tar")
    assert serves(root, publisher, "3")
    weights[1].unlink()
    (root / "current" / "manifest" / NAME / "service.yaml").write_text("damaged")
    install(publisher, "3", root)
    assert serves(root, publisher, "3")


def test_a_file_is_never_changed_in_place(publisher: Publisher, tmp_path: Path) -> None:
    """A process that has its weights mapped keeps them, also when its generation has gone."""
    root = tmp_path / "node"
    install(publisher, "1", root)
    with (root / "current" / "model" / "minilm" / "model.safetensors").open("rb") as mapped:
        for version in ("2", "3"):
            install(publisher, version, root)
        assert mapped.read() == given(publisher, "1")["model/minilm/model.safetensors"]


def test_executables_stay_executable(publisher: Publisher, tmp_path: Path) -> None:
    other = Publisher(tmp_path / "p")
    from edge_bundles import inputs
    from torpor.edge.bundle import make_bundle

    made = inputs(tmp_path / "inputs")
    (tmp_path / "inputs" / "manifest" / "service.yaml").chmod(0o755)
    make_bundle(other.folder / "b", NAME, "1", "any", NOW, made)
    install(other, "", tmp_path / "node", bundle=other.sign(other.folder / "b"))
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "node" / "current").rglob("*.*")}
    assert modes["service.yaml"] == 0o755
    assert modes["model.toml"] == 0o644


# What stops an installation


def refusal(publisher: Publisher, root: Path, bundle: Path, **how: object) -> str:
    """The reason; what is served is as before."""
    before = files(root)
    with Layout.at(bundle) as layout, pytest.raises(Refused) as refused:
        Node(root, Unsynced()).install(layout, how.get("clock", NOW), how.get("first"))  # type: ignore[arg-type]
    assert files(root) == before
    return refused.value.reason


def test_another_architectures_bundle_is_refused(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path)
    arm = publisher.bundle("1", platform="linux/arm64")
    with Layout.at(arm) as layout, pytest.raises(Refused, match="must be for linux/amd64") as refused:
        Node(tmp_path / "node", Unsynced(), Machine(architecture="amd64")).install(layout, NOW, publisher.root)
    assert refused.value.reason == "platform"
    assert not (tmp_path / "node" / "node.json").exists()
    there = make_machine(tmp_path / "arm", architecture="arm64")
    with Layout.at(arm) as layout:
        Node(tmp_path / "node", Unsynced(), there).install(layout, NOW, publisher.root)


@pytest.mark.parametrize(
    ("lines", "machine", "said"),
    [
        ({}, {"architecture": "arm64"}, "architecture = 'amd64', this node has arm64"),
        ({"memory": '"8Gi"'}, {}, "memory = 8Gi, this node has 3900000Ki"),
        ({"memory": '"4Gi"'}, {"proc__meminfo": None}, "memory = 4Gi, this node has 0Gi"),
        ({"runtime_class": '"gvisor"'}, {"programs": ("runsc",)}, "no runsc and containerd-shim-runsc-v1 on its path"),
        ({"accelerator": '"cuda"'}, {}, "no NVIDIA driver"),
    ],
)
def test_a_node_that_does_not_meet_the_profile_takes_nothing(
    tmp_path: Path, lines: dict[str, str], machine: dict[str, Any], said: str
) -> None:
    """It is said before anything is changed, and what it trusts is as before, so that the right bundle can come."""
    publisher = Publisher(tmp_path)
    bundle = publisher.bundle("1", description=profile("amd64", **lines))
    node = Node(tmp_path / "node", Unsynced(), make_machine(tmp_path / "machine", **machine))
    with Layout.at(bundle) as layout, pytest.raises(Refused) as refused:
        node.install(layout, NOW, publisher.root)
    assert said in str(refused.value)
    assert refused.value.reason == "profile"
    assert node.state() is None


def test_a_node_that_meets_the_profile_takes_it(tmp_path: Path) -> None:
    """A machine of 4 GiB shows less than that, and a driver says its version among other words."""
    publisher = Publisher(tmp_path)
    lines = {"memory": '"4Gi"', "runtime_class": '"gvisor"', "accelerator": '"cuda"'}
    bundle = publisher.bundle("1", description=profile("amd64", **lines))
    version = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version: 12\n"
    programs = ("runsc", "containerd-shim-runsc-v1")
    machine = make_machine(tmp_path / "machine", programs=programs, proc__driver__nvidia__version=version)
    assert machine.driver == "580.65.06"
    with Layout.at(bundle) as layout:
        assert Node(tmp_path / "node", Unsynced(), machine).install(layout, NOW, publisher.root).is_new


def test_a_thin_bundle_brings_its_profile(publisher: Publisher, tmp_path: Path) -> None:
    """The node reads it before it takes anything, and the old one may be damaged."""
    publisher.thin("1", "2", tmp_path / "thin.tar")
    with Layout.at(tmp_path / "thin.tar") as layout:
        (found,) = layout.contents(layout.index()).profile_files()
        assert all(layout.has(part) for part in found.parts)


def test_a_profile_of_megabytes_is_refused(tmp_path: Path) -> None:
    """It is read into memory before space was checked."""
    publisher = Publisher(tmp_path)
    bundle = publisher.bundle("1", description=profile() + "#" * (65 << 10))
    assert refusal(publisher, tmp_path / "node", bundle, first=publisher.root) == "malformed"


def test_a_bundle_of_another_name_is_refused(tmp_path: Path) -> None:
    """One key signs for many nodes; none of them takes what is another's."""
    publisher = Publisher(tmp_path)
    install(publisher, "", tmp_path / "node", bundle=publisher.bundle("1"))
    assert refusal(publisher, tmp_path / "node", publisher.bundle("2", name="other")) == "name"


def test_a_node_without_a_root_takes_nothing(publisher: Publisher, tmp_path: Path) -> None:
    with Layout.at(publisher.folder / f"{NAME}-1") as layout, pytest.raises(Refused, match="trusts no root yet"):
        Node(tmp_path / "node").install(layout, NOW)


def test_a_root_that_is_given_later_is_not_heard(publisher: Publisher, tmp_path: Path) -> None:
    """Or whoever may run the command could change whom the node trusts."""
    install(publisher, "1", tmp_path / "node")
    stranger = Publisher(tmp_path / "stranger")
    with Layout.at(stranger.bundle("9")) as layout, pytest.raises(Refused):
        Node(tmp_path / "node", Unsynced()).install(layout, NOW, stranger.root)


def test_expired_metadata_means_no_update_and_goes_on_serving(tmp_path: Path) -> None:
    """Unless the operator says so, which is recorded."""
    publisher = Publisher(tmp_path)
    root = tmp_path / "node"
    install(publisher, "", root, bundle=publisher.bundle("1"))
    late = publisher.bundle("2", last=2.0, days=10)
    assert refusal(publisher, root, late, clock=NOW + 11 * DAY) == "expired"
    with Layout.at(late) as layout:
        Node(root, Unsynced()).install(layout, NOW + 11 * DAY, word="J. Doe: the link is down")
    assert serves(root, publisher, "2")
    state = Node(root).state()
    assert state is not None
    assert state.history[-1]["word"] == "J. Doe: the link is down"
    assert state.history[-1]["expired"] == ["timestamp", "snapshot", "targets"]


def test_a_part_that_is_damaged_on_the_medium_stops_it_before_anything_is_served(
    publisher: Publisher, tmp_path: Path
) -> None:
    """And the same installation from a good medium goes on where it stopped."""
    root = tmp_path / "node"
    install(publisher, "1", root)
    bundle = shutil.copytree(publisher.folder / f"{NAME}-3", tmp_path / "bundle")
    with Layout.at(bundle) as layout:
        weights = next(f for f in layout.contents(layout.index()).files() if f.path.endswith("safetensors"))
    (bundle / weights.parts[-1].path).write_bytes(bytes(weights.parts[-1].size))
    assert refusal(publisher, root, bundle) == "digest"
    done = install(publisher, "3", root)
    assert done.bytes.kept > 7 * 1024
    assert serves(root, publisher, "3")


class Room(Unsynced):
    """A disk that says how many bytes are free."""

    def __init__(self, free: int) -> None:
        self._free = free

    def free_bytes(self, path: Path) -> int:
        return self._free


@pytest.mark.parametrize("served", ["1", "what cannot be read", "nothing"])
def test_too_little_room_is_said_before_anything_is_written(publisher: Publisher, tmp_path: Path, served: str) -> None:
    root = tmp_path / "node"
    if served != "nothing":
        install(publisher, "1", root)
    if served != "1":
        (root / "current" / "seal.json").unlink(missing_ok=True)
    with pytest.raises(Refused, match="has 1000 bytes free, must have") as refused:
        install(publisher, "2", root, Room(1000))
    assert refused.value.reason == "space"
    assert not (root / "staging").exists()


def test_the_room_that_is_needed_is_for_the_files_and_a_little_more(publisher: Publisher, tmp_path: Path) -> None:
    """But for what lies in staging already."""
    with Layout.at(publisher.folder / f"{NAME}-1") as layout:
        need = sum(file.size for file in layout.contents(layout.index()).files()) + SPARE_BYTES
    root = tmp_path / "node"
    with pytest.raises(Refused, match=f"must have {need}"):
        install(publisher, "1", root, Room(need - 1))
    (root / "staging" / "model" / "minilm").mkdir(parents=True)
    (root / "staging" / "model" / "minilm" / "model.safetensors").write_bytes(bytes(1000))
    with pytest.raises(Refused, match=f"must have {need - 1000}"):
        install(publisher, "1", root, Room(need - 1001))
    install(publisher, "1", root, Room(need - 1000))
    assert serves(root, publisher, "1")


def test_what_was_taken_back_is_served_again_without_room(publisher: Publisher, tmp_path: Path) -> None:
    root = tmp_path / "node"
    for version in ("1", "2"):
        install(publisher, version, root)
    Node(root, Unsynced()).roll_back()
    install(publisher, "2", root, Room(0))
    assert serves(root, publisher, "2")


def test_what_was_taken_back_gives_its_parts_to_what_comes(publisher: Publisher, tmp_path: Path) -> None:
    """It goes before only where its room is needed."""
    root = tmp_path / "node"
    for version in ("1", "2"):
        install(publisher, version, root)
    Node(root, Unsynced()).roll_back()
    (root / "generations" / "2" / "manifest" / NAME / "service.yaml").write_text("damaged")
    done = install(publisher, "2", root)
    assert done.bytes.moved == len(given(publisher, "2")[f"manifest/{NAME}/service.yaml"])
    assert serves(root, publisher, "2")


def size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def test_what_was_taken_back_gives_its_room_to_what_comes(publisher: Publisher, tmp_path: Path) -> None:
    """On a disk for two versions and a half."""
    root = tmp_path / "node"
    install(publisher, "1", root)
    most = SPARE_BYTES + size_of(root / "generations") * 5 // 2

    class Small(Unsynced):
        def free_bytes(self, path: Path) -> int:
            return most - size_of(root / "generations")

    install(publisher, "2", root)
    Node(root, Unsynced()).roll_back()
    install(publisher, "3", root, Small())
    assert serves(root, publisher, "3")
    assert Node(root).generations.numbers() == [1, 3]


def test_making_room_leaves_the_way_back(publisher: Publisher, tmp_path: Path) -> None:
    """What is served and what was before it stay; nothing goes while an installation runs."""
    root = tmp_path / "node"
    for version in ("1", "2"):
        install(publisher, version, root)
    shutil.copytree(root / "generations" / "2", root / "generations" / "3")
    (root / "staging").mkdir()
    node = Node(root, Unsynced())
    with node._alone(), pytest.raises(Refused, match="another installation runs"):
        Node(root, Unsynced()).make_room()
    assert node.generations.numbers() == [1, 2, 3]
    node.make_room()
    assert node.generations.numbers() == [1, 2]
    assert not (root / "staging").exists()
    assert node.roll_back().version == "1"


def test_a_folder_that_another_process_makes_at_that_moment_is_there(tmp_path: Path) -> None:
    """And what is no folder is still said."""

    class Raced(Unsynced):
        def make_folder(self, path: Path) -> None:
            path.mkdir()
            super().make_folder(path)

    Raced().need_folder(tmp_path / "node" / "generations")
    assert (tmp_path / "node" / "generations").is_dir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileExistsError):
        Unsynced().need_folder(tmp_path / "file")


def test_two_installations_at_once_are_one(publisher: Publisher, tmp_path: Path) -> None:
    root = tmp_path / "node"
    install(publisher, "1", root)
    with (root / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Refused) as refused:
            install(publisher, "2", root)
    assert refused.value.reason == "busy"
    install(publisher, "2", root)


def test_a_disk_that_is_full_at_any_step_changes_nothing(publisher: Publisher, tmp_path: Path) -> None:
    """The same installation goes on when there is room again."""
    first = tmp_path / "first"
    install(publisher, "1", first)
    for at in range(1000):
        root = tmp_path / str(at)
        shutil.copytree(first, root, symlinks=True)
        reason = ""
        try:
            install(publisher, "2", root, FullDisk(at))
        except Refused as refused:
            reason = refused.reason
        if not reason:
            break
        assert reason == "space"
        assert serves(root, publisher, "1") or serves(root, publisher, "2")
        install(publisher, "2", root)
        assert serves(root, publisher, "2")
        shutil.rmtree(root)
    assert at > 30


def test_another_failure_of_the_disk_is_not_called_full(publisher: Publisher, tmp_path: Path) -> None:
    class Broken(Unsynced):
        def write(self, file: int, offset: int, data: bytes) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output error"):
        install(publisher, "1", tmp_path / "node", Broken())


def test_a_damaged_state_stops_updates_only(publisher: Publisher, tmp_path: Path) -> None:
    root = tmp_path / "node"
    install(publisher, "1", root)
    for text in ("", "[]", "{}", '{"name": 1, "trust": {}, "time": "x", "history": []}'):
        (root / "node.json").write_text(text)
        assert refusal(publisher, root, publisher.folder / f"{NAME}-2") in ("malformed", "state")
        assert serves(root, publisher, "1")


def test_what_another_bundle_left_in_staging_does_not_come_along(publisher: Publisher, tmp_path: Path) -> None:
    """Files, links and folders where files belong."""
    root = tmp_path / "node"
    install(publisher, "1", root)
    staging = root / "staging"
    (staging / "model" / "minilm" / "model.toml").mkdir(parents=True)
    (staging / "model" / "minilm" / "model.toml" / "x").write_text("x")
    (staging / "image").mkdir()
    (staging / "image" / "runtime").symlink_to(tmp_path)
    (staging / "other").write_text("x")
    (staging / "manifest" / NAME).mkdir(parents=True)
    (staging / "manifest" / NAME / "service.yaml").write_text("longer than what belongs there")
    install(publisher, "2", root)
    assert serves(root, publisher, "2")
    assert set(files(root)) == set(given(publisher, "2")) | {
        f"sbom/{NAME}/bom.cdx.json", f"provenance/{NAME}/statement.json",
    }  # fmt: skip


# Power cuts

SHARES = (0.0, 1.0, 0.3, 0.5, 0.5, 0.8)
"""Of what was not synced, how much has come through; the parts of it differ from one to the next."""


def cut_everywhere(publisher: Publisher, tmp_path: Path, start: Path, version: str, before: str | None) -> int:
    """Install into start/node with a cut before each change, and after the last; the number of states that were looked at."""
    work = tmp_path / "work"
    shutil.copytree(start, work, symlinks=True)
    disk = RecordedDisk(work)
    install(publisher, version, work / "node", disk)
    looked = 0
    for at in steps(disk):
        for number, share in enumerate(SHARES):
            chance = random.Random(at * 100 + number) if 0 < share < 1 else None
            disk.after_cut(at, chance, share, tmp_path / "after")
            node = tmp_path / "after" / "node"
            is_new = serves(node, publisher, version)
            assert is_new or at < len(disk.changes), "the installation had returned"
            assert is_new or before is None or serves(node, publisher, before), (at, share)
            state = Node(node).state()
            if is_new:
                assert state is not None, "or an older one would be accepted again"
                assert state.history[-1]["version"] == version
            install(publisher, version, node)
            assert serves(node, publisher, version), (at, share)
            shutil.rmtree(tmp_path / "after")
            looked += 1
    return looked


def test_no_power_cut_leaves_a_node_without_a_working_version(publisher: Publisher, tmp_path: Path) -> None:
    """At every write of an update; what was not synced is dropped, torn and reordered. The same call then goes on."""
    start = tmp_path / "start"
    start.mkdir()
    install(publisher, "1", start / "node")
    assert cut_everywhere(publisher, tmp_path, start, "2", "1") > 200


def test_no_power_cut_spoils_a_first_installation(publisher: Publisher, tmp_path: Path) -> None:
    """There is nothing to serve yet; the same call goes on."""
    start = tmp_path / "start"
    start.mkdir()
    assert cut_everywhere(publisher, tmp_path, start, "1", None) > 200


def test_a_file_that_was_put_stays(tmp_path: Path) -> None:
    """With its name, and not only its bytes."""
    (tmp_path / "work").mkdir()
    disk = RecordedDisk(tmp_path / "work")
    disk.put(tmp_path / "work" / "a", b"new")
    disk.after_cut(len(disk.changes), None, 0.0, tmp_path / "after")
    assert (tmp_path / "after" / "a").read_bytes() == b"new"


def test_no_power_cut_spoils_the_way_back(publisher: Publisher, tmp_path: Path) -> None:
    work = tmp_path / "work"
    for version in ("1", "2"):
        install(publisher, version, work)
    disk = RecordedDisk(work)
    Node(work, disk).roll_back()
    for at in steps(disk):
        for share in (0.0, 1.0):
            place = tmp_path / f"{at} {share}"
            disk.after_cut(at, None, share, place)
            assert serves(place, publisher, "1") or serves(place, publisher, "2")


def test_an_installation_that_was_broken_off_moves_nothing_twice(publisher: Publisher, tmp_path: Path) -> None:
    """Whole parts are known by their digest, and stay."""

    class Stops(Unsynced):
        def __init__(self) -> None:
            self.left = 8 * 1024

        def write(self, file: int, offset: int, data: bytes) -> None:
            self.left -= len(data)
            if self.left < 0:
                raise KeyboardInterrupt
            super().write(file, offset, data)

    root = tmp_path / "node"
    with pytest.raises(KeyboardInterrupt):
        install(publisher, "1", root, Stops())
    done = install(publisher, "1", root)
    whole = sum(map(len, files(root).values()))
    assert done.bytes.moved + done.bytes.kept == whole
    assert done.bytes.kept >= 3 * 1024


def test_a_history_has_an_end(publisher: Publisher, tmp_path: Path) -> None:
    """The state is read at each start."""
    root = tmp_path / "node"
    install(publisher, "1", root)
    value = json.loads((root / "node.json").read_text())
    value["history"] = [{"at": "x", "version": str(n)} for n in range(500)]
    (root / "node.json").write_text(json.dumps(value))
    install(publisher, "2", root)
    state = Node(root).state()
    assert state is not None
    assert len(state.history) == 100
    assert state.history[-1]["version"] == "2"


def test_a_bundle_in_one_file_is_installed_as_a_folder_is(publisher: Publisher, tmp_path: Path) -> None:
    archive = packed(publisher.folder / f"{NAME}-1", tmp_path / "b.tar")
    install(publisher, "", tmp_path / "node", bundle=archive)
    assert serves(tmp_path / "node", publisher, "1")
