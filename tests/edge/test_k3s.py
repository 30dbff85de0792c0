"""What is served, in K3s's folders: there as a whole, gone when it is not served any more, and nothing of others touched."""

import random
import shutil
from pathlib import Path

import pytest
from edge_bundles import profile
from failing_disk import RecordedDisk, Unsynced, steps
from torpor.edge.contents import Blob, File
from torpor.edge.k3s import K3s
from torpor.edge.refused import Refused


def served(folder: Path, **texts: str) -> tuple[File, ...]:
    """Files of a generation; __ stands for a slash, and _ in a name for a dot."""
    files = []
    for key, text in texts.items():
        path = key.replace("__", "/").replace("_yaml", ".yaml").replace("_tar", ".tar").replace("_toml", ".toml")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
        files.append(File(path, (Blob.of(text.encode()),)))
    return tuple(files)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """K3s's folder, with what K3s and a person have put there."""
    data = tmp_path / "k3s"
    for name in ("agent/images/k3s-airgap-images.tar", "server/manifests/coredns.yaml"):
        (data / name).parent.mkdir(parents=True)
        (data / name).write_text("not ours")
    return data


def found(data: Path) -> dict[str, str]:
    return {path.relative_to(data).as_posix(): path.read_text() for path in data.rglob("*") if path.is_file()}


def test_images_and_manifests_lie_where_k3s_looks(tmp_path: Path, data: Path) -> None:
    """By names that K3s takes; models stay where they are."""
    before = found(data)
    one = served(tmp_path / "1", image__runtime__runtime_tar="i1", manifest__s__My_Service_yaml="m1", model__m__x="w")
    K3s(data, Unsynced()).place(tmp_path / "1", one)
    assert found(data) == before | {
        "agent/images/torpor-runtime-runtime.tar": "i1", "server/manifests/torpor-s-my-service.yaml": "m1",
    }  # fmt: skip
    two = served(tmp_path / "2", manifest__s__My_Service_yaml="m2")
    K3s(data, Unsynced()).place(tmp_path / "2", two)
    assert found(data) == before | {"server/manifests/torpor-s-my-service.yaml": "m2"}


def test_a_manifest_edited_in_place_changes_no_generation(tmp_path: Path, data: Path) -> None:
    """It is a copy."""
    one = served(tmp_path / "1", manifest__s__a_yaml="m1")
    K3s(data, Unsynced()).place(tmp_path / "1", one)
    (data / "server/manifests/torpor-s-a.yaml").write_text("edited")
    assert (tmp_path / "1" / "manifest/s/a.yaml").read_text() == "m1"


def test_two_files_of_one_name_are_refused_before_anything_is_placed(tmp_path: Path, data: Path) -> None:
    before = found(data)
    two = served(tmp_path / "1", manifest__s__A_yaml="1", manifest__s__a_yaml="2")
    with pytest.raises(Refused) as refused:
        K3s(data).place(tmp_path / "1", two)
    assert refused.value.reason == "name"
    assert found(data) == before


def test_a_profile_with_gvisor_brings_containerds_template(tmp_path: Path, data: Path) -> None:
    """Where there is none; a person's own stays, if it has runsc, and else they are told."""
    plain = served(tmp_path / "1", profile__node__node_toml=profile(), manifest__s__a_yaml="m1")
    K3s(data, Unsynced()).place(tmp_path / "1", plain)
    template = data / "agent/etc/containerd/config-v3.toml.tmpl"
    assert not template.exists()
    gvisor = served(
        tmp_path / "2", profile__node__node_toml=profile(runtime_class='"gvisor"'), manifest__s__a_yaml="m2"
    )
    K3s(data, Unsynced()).place(tmp_path / "2", gvisor)
    assert "io.containerd.runsc.v1" in template.read_text()
    template.write_text("own, with runsc")
    K3s(data, Unsynced()).place(tmp_path / "2", gvisor)
    assert template.read_text() == "own, with runsc"
    template.write_text("own")
    with pytest.raises(Refused, match="tmpl has no runsc") as refused:
        K3s(data, Unsynced()).place(tmp_path / "2", gvisor)
    assert refused.value.reason == "state"
    assert found(data)["server/manifests/torpor-s-a.yaml"] == "m2"


def test_a_folder_that_is_not_there_is_no_k3s(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="must be K3s's data folder"):
        K3s(tmp_path / "none")


def test_no_power_cut_leaves_half_a_file(tmp_path: Path, data: Path) -> None:
    """K3s would apply it at its next start; the same call again completes what is missing."""
    one = served(tmp_path / "1", image__r__r_tar="i1" * 900, manifest__s__a_yaml="m1" * 900)
    two = served(tmp_path / "2", image__r__r_tar="i2" * 900, manifest__s__b_yaml="m2" * 900)
    K3s(data, Unsynced()).place(tmp_path / "1", one)
    before = shutil.copytree(data, tmp_path / "before")
    disk = RecordedDisk(data)
    K3s(data, disk).place(tmp_path / "2", two)
    whole = {*found(before).values(), *found(data).values()}
    for at in steps(disk):
        for share in (0.0, 0.5, 1.0):
            place = tmp_path / f"{at} {share}"
            disk.after_cut(at, random.Random(at) if share == 0.5 else None, share, place)
            seen = found(place)
            assert all(text in whole for name, text in seen.items() if not name.endswith(".new")), at
            assert seen == found(data) or at < len(disk.changes), "the call had returned"
            K3s(place, Unsynced()).place(tmp_path / "2", two)
            assert found(place) == found(data)
