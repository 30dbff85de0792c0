"""Bundles as they are made and read: the same bytes each time, weights by tensor, one form for the file."""

import io
import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edge_bundles import NAME, NOW, Publisher, inputs, packed, profile
from safetensors.numpy import save_file
from torpor.edge import archive as archive_module
from torpor.edge import bundle as bundle_module
from torpor.edge import layout as layout_module
from torpor.edge.archive import header
from torpor.edge.bundle import Input, make_bundle
from torpor.edge.contents import CREATED, PLATFORM, TITLE, VERSION, Blob, Heading, files_of
from torpor.edge.difference import difference, unneeded
from torpor.edge.layout import Layout, put_metadata
from torpor.edge.pieces import pieces
from torpor.edge.refused import Refused


def made(folder: Path, last: float = 0.0) -> Path:
    make_bundle(folder / "bundle", NAME, "1", "any", NOW, inputs(folder, last))
    return folder / "bundle"


def rebuilt(bundle: Path, path: str) -> bytes:
    with Layout.at(bundle) as layout:
        file = next(file for file in layout.contents(layout.index()).files() if file.path == path)
        return b"".join(chunk for part in file.parts for chunk in layout.chunks(part))


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    """Whenever and wherever it is made: a digest then says what was built."""
    archives = []
    for place in ("here", "there"):
        bundle = made(tmp_path / place)
        os.utime(bundle / "index.json", (0, 0))
        archives.append(packed(bundle, tmp_path / f"{place}.tar").read_bytes())
    assert archives[0] == archives[1]


def test_any_tar_reads_the_file(tmp_path: Path) -> None:
    """The strict form is plain POSIX."""
    archive = packed(made(tmp_path), tmp_path / "b.tar")
    with tarfile.open(archive) as tar:
        index = tar.extractfile("index.json")
        assert index is not None
        assert index.read() == (tmp_path / "bundle" / "index.json").read_bytes()


def test_weights_have_a_part_for_each_tensor_and_come_back_byte_for_byte(tmp_path: Path) -> None:
    bundle = made(tmp_path)
    weights = tmp_path / "model" / "model.safetensors"
    assert rebuilt(bundle, "model/minilm/model.safetensors") == weights.read_bytes()
    assert len(pieces(weights)) == 1 + 8


def test_a_changed_tensor_moves_alone(tmp_path: Path) -> None:
    """And the version's own text, SBOM and provenance."""
    old, new = made(tmp_path / "old"), made(tmp_path / "new", last=1.0)
    with Layout.at(old) as before, Layout.at(new) as after:
        found = difference(before.contents(before.index()), after.contents(after.index()))
        assert found.changed["model/minilm/model.safetensors"] == 16 * 16 * 4
        assert sorted(found.changed) == [
            "model/minilm/model.safetensors", f"provenance/{NAME}/statement.json", f"sbom/{NAME}/bom.cdx.json",
        ]  # fmt: skip
        assert len(found.moved) == 3
        after.pack(tmp_path / "thin.tar", {}, without=unneeded(after, found))
    with Layout.at(tmp_path / "thin.tar") as thin:
        contents = thin.contents(thin.index())
        (description,) = contents.profile_files()
        assert {part for part in contents.parts().values() if thin.has(part)} == {*found.moved, *description.parts}


@pytest.mark.parametrize(
    "content",
    [b"", b"1234567", b"\xff" * 64, (200).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b'{"a":3}'],
)
def test_what_is_no_safetensors_file_is_carried_as_it_is(tmp_path: Path, content: bytes) -> None:
    """Nothing that makes a bundle judges a model."""
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    assert sum(pieces(file)) == len(content)
    make_bundle(tmp_path / "bundle", NAME, "1", "any", NOW, [Input("model", "m", tmp_path / "x.safetensors")])
    assert rebuilt(tmp_path / "bundle", "model/m/x.safetensors") == content


def test_a_tar_is_cut_at_its_members(tmp_path: Path) -> None:
    """So that an image moves only the layers that changed."""
    file = tmp_path / "image.tar"
    with tarfile.open(file, "w") as tar:
        for name in ("layer1", "layer2"):
            entry = tarfile.TarInfo(name)
            entry.size = 3000
            tar.addfile(entry, io.BytesIO(name.encode() * 500))
    sizes = pieces(file)
    assert sizes[:4] == [512, 3072, 512, 3072]
    assert sum(sizes) == file.stat().st_size


def test_gaps_and_shared_bytes_of_tensors_are_carried_too(tmp_path: Path) -> None:
    """A header may name ranges in any order, with holes, or twice."""
    table = {"a": {"dtype": "U8", "shape": [4], "data_offsets": [8, 12]}, "b": {"data_offsets": [0, 4]}}
    text = json.dumps(table).encode()
    file = tmp_path / "x.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(range(20)))
    assert pieces(file) == [8 + len(text), 4, 4, 4, 8]


def test_the_sbom_names_each_file_by_its_digest(tmp_path: Path) -> None:
    bundle = made(tmp_path)
    sbom = json.loads(rebuilt(bundle, f"sbom/{NAME}/bom.cdx.json"))
    model = next(each for each in sbom["components"] if each["type"] == "machine-learning-model")
    weights = next(each for each in model["components"] if each["name"].endswith(".safetensors"))
    digest = Blob.of((tmp_path / "model" / "model.safetensors").read_bytes()).digest
    assert weights["hashes"] == [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}]
    assert "sentences" in sbom["metadata"]["component"]["name"]
    statement = json.loads(rebuilt(bundle, f"provenance/{NAME}/statement.json"))
    assert str(tmp_path) not in json.dumps(statement)


def test_a_folder_is_taken_with_what_lies_below_it_but_for_compiled_code(tmp_path: Path) -> None:
    """Which appears when a model was once served from the folder, and differs with the interpreter."""
    folder = tmp_path / "m"
    for name in ("inner/weights", "__pycache__/model.pyc", "inner/__pycache__/layer.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    _, contents = make_bundle(tmp_path / "bundle", NAME, "1", "any", NOW, [Input("model", "m", folder)])
    assert [file.path for file in contents.files() if file.path.startswith("model/")] == ["model/m/inner/weights"]


def test_a_linked_folder_is_not_left_out_silently(tmp_path: Path) -> None:
    given = inputs(tmp_path)
    (tmp_path / "model" / "more").symlink_to(tmp_path / "manifest")
    with pytest.raises(Refused, match=r"more must be a file") as refused:
        make_bundle(tmp_path / "bundle", NAME, "1", "any", NOW, given)
    assert refused.value.reason == "link"


@pytest.mark.parametrize(
    ("name", "version", "platform"),
    [
        ("Sentences", "1", "any"),
        ("../x", "1", "any"),
        (NAME, "", "any"),
        (NAME, "a b", "any"),
        (NAME, "1", "linux/riscv"),
    ],
)
def test_a_bundle_has_a_name_a_version_and_a_known_platform(
    tmp_path: Path, name: str, version: str, platform: str
) -> None:
    with pytest.raises(Refused, match="must be") as refused:
        make_bundle(tmp_path / "bundle", name, version, platform, NOW, inputs(tmp_path))
    assert refused.value.reason == "malformed"


def test_two_components_of_one_name_are_refused(tmp_path: Path) -> None:
    """Before anything is written; an SBOM of the bundle's name is torpor's own."""
    given = inputs(tmp_path)
    for twice in (given[0], Input("sbom", NAME, given[0].path)):
        with pytest.raises(Refused, match=rf"{twice.kind}/{twice.name} is there twice"):
            make_bundle(tmp_path / "bundle", NAME, "1", "any", NOW, [*given, twice])
    assert not (tmp_path / "bundle").exists()


def test_a_component_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    """Before anything is written: no node would read the bundle."""
    given = inputs(tmp_path)
    with pytest.raises(Refused, match=r"kind = 'shell', must be one of .*model"):
        make_bundle(tmp_path / "bundle", NAME, "1", "any", NOW, [*given, Input("shell", "x", given[0].path)])
    assert not (tmp_path / "bundle").exists()


def test_a_file_that_is_cut_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was measured before."""

    def measured_then_cut(path: Path) -> list[int]:
        sizes = pieces(path)
        os.truncate(path, 0)
        return sizes

    monkeypatch.setattr(bundle_module, "pieces", measured_then_cut)
    with pytest.raises(Refused, match=r"model\.safetensors became shorter while it was read"):
        made(tmp_path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a//b",
        "./a",
        "a/",
        "a\\b",
        "a\nb",
        "a\0b",
        "a" * 256,
        "a/" * 600 + "a",
        "\udc80",
        3,
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(path: object) -> None:
    """Also by who may sign."""
    with pytest.raises(Refused, match="path = ") as refused:
        files_of({"files": [{"path": path, "parts": []}]}, "x")
    assert refused.value.reason == "malformed"


@pytest.mark.parametrize("paths", [["a", "a"], ["a", "a/b"], ["a/b/c", "a/b"]])
def test_two_files_in_one_place_are_refused(paths: list[str]) -> None:
    with pytest.raises(Refused, match=r"twice|a file and a folder"):
        files_of({"files": [{"path": path, "parts": []} for path in paths]}, "x")


@pytest.mark.parametrize(
    "part", [["sha256:" + "0" * 63, 1], ["md5:" + "0" * 32, 1], ["sha256:" + "0" * 64, -1], ["sha256:" + "0" * 64, 1 << 40],
             ["sha256:" + "0" * 64, True], ["sha256:" + "0" * 64, "1"], ["sha256:" + "0" * 64], 1, [3, 1]]
)  # fmt: skip
def test_a_part_has_a_digest_and_a_bounded_size(part: object) -> None:
    with pytest.raises(Refused) as refused:
        files_of({"files": [{"path": "a", "parts": [part]}]}, "x")
    assert refused.value.reason == "malformed"


@pytest.mark.parametrize(
    "value", [{}, {"files": 3}, {"files": [3]}, {"files": {"path": "a"}}, {"files": [{"path": "a"}]}]
)
def test_a_list_of_files_has_its_form(value: dict[str, object]) -> None:
    with pytest.raises(Refused) as refused:
        files_of(value, "x")
    assert refused.value.reason == "malformed"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index: index.update(artifactType="x"), "artifactType = 'x'"),
        (lambda index: index.update(schemaVersion=1), "artifactType"),
        (lambda index: index.pop("annotations"), "annotations are missing"),
        (lambda index: index["annotations"].clear(), "name = None"),
        (lambda index: index["annotations"].update({VERSION: 3}), "version = 3"),
        (lambda index: index["annotations"].update({PLATFORM: "windows"}), "platform = 'windows'"),
        (lambda index: index["annotations"].update({CREATED: "2026-01-01"}), "build time = '2026-01-01'"),
        (lambda index: index["annotations"].update({CREATED: 1}), "build time = 1"),
        (lambda index: index.update(manifests=None), "manifests must be a list"),
        (lambda index: index["manifests"][0].pop("annotations"), "component None"),
        (lambda index: index["manifests"][0]["annotations"].update({TITLE: "shell/x"}), "component 'shell/x'"),
        (
            lambda index: index["manifests"][0]["annotations"].update({TITLE: "model/../x"}),
            r"name of a model = '\.\./x'",
        ),
        (lambda index: index["manifests"].append(index["manifests"][0]), "is there twice"),
        (lambda index: index["manifests"][0].update(digest="sha512:0"), "digest = 'sha512:0'"),
        (lambda index: index["manifests"][0].update(size=-1), "size = -1"),
    ],
)
def test_an_index_has_its_form(tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str) -> None:
    """Also one that is signed."""
    with pytest.raises(Refused, match="must be a JSON object"):
        Heading(b"[]")
    index = json.loads((made(tmp_path) / "index.json").read_bytes())
    Heading(json.dumps(index).encode())
    change(index)
    with pytest.raises(Refused, match=said) as refused:
        Heading(json.dumps(index).encode())
    assert refused.value.reason == "malformed"


def opened(path: Path) -> None:
    with Layout.at(path) as layout:
        contents = layout.contents(layout.index())
        for part in contents.parts().values():
            for _ in layout.chunks(part):
                pass


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "link"), (tarfile.CHRTYPE, "link"), (tarfile.BLKTYPE, "link"),
        (tarfile.DIRTYPE, "link"), (tarfile.FIFOTYPE, "link"), (tarfile.XHDTYPE, "malformed"),
        (tarfile.GNUTYPE_LONGNAME, "malformed"), (tarfile.GNUTYPE_SPARSE, "malformed"), (b"\0", "malformed"),
    ],
)  # fmt: skip
def test_an_archive_has_plain_files_only(tmp_path: Path, kind: bytes, reason: str) -> None:
    entry = tarfile.TarInfo("blobs/sha256/" + "0" * 64)
    entry.type = kind
    entry.linkname = "/etc/passwd"
    archive = packed(made(tmp_path), tmp_path / "b.tar")
    archive.write_bytes(entry.tobuf(tarfile.USTAR_FORMAT) + archive.read_bytes())
    with pytest.raises(Refused) as refused:
        opened(archive)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    "name", ["../x", "/x", "blobs/sha256/../../x", "a", "blobs/sha256/zz", "tuf/0.root.json", "tuf/x.json"]
)
def test_an_archive_has_a_bundles_files_only(tmp_path: Path, name: str) -> None:
    """Nothing is ever unpacked by a member's name; it is refused all the same."""
    members = [(name, b"x"), ("index.json", b"{}"), ("oci-layout", b"{}")]
    data = b"".join(header(n, len(d)) + d.ljust(512, b"\0") for n, d in sorted(members)) + bytes(1024)
    (tmp_path / "b.tar").write_bytes(data)
    with pytest.raises(Refused) as refused:
        opened(tmp_path / "b.tar")
    assert refused.value.reason == "unexpected"


def doubled(data: bytes) -> bytes:
    return data[: 512 * 2] * 2 + data[512 * 2 :]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[:-1], "two blocks of zeros"),
        (lambda data: data[:-1024], "no header|cut off|another header"),
        (lambda data: data + b"\0", "two blocks of zeros"),
        (lambda data: data[:700], "ends within|padding"),
        (lambda data: b"", "no header"),
        (doubled, "no header|ascending|another header"),
        (lambda data: data[:124] + b"77777777777\0" + data[136:], "another header"),
        (lambda data: data[:124] + b"-0000000001\0" + data[136:], "no header"),
        (lambda data: header("", 0) + data, "ascending order"),
        (lambda data: data[:-1025] + b"\1" + data[-1024:], "padding behind oci-layout must be zeros"),
        (lambda data: header("blobs/sha256/" + "0" * 64, 1 << 30) + data, "ends within"),
    ],
)
def test_an_archive_that_is_cut_or_lies_about_sizes_is_refused(
    tmp_path: Path, change: Callable[[bytes], bytes], said: str
) -> None:
    """A bomb among them: what is declared must be there, and nothing is compressed."""
    archive = packed(made(tmp_path), tmp_path / "b.tar")
    archive.write_bytes(change(archive.read_bytes()))
    with pytest.raises(Refused, match=said) as refused:
        opened(archive)
    assert refused.value.reason == "malformed"


def test_a_list_of_members_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is held in memory before anything is known to be signed."""
    monkeypatch.setattr(archive_module, "MOST_MEMBERS", 3)
    with pytest.raises(Refused, match="at most 3 members"):
        opened(packed(made(tmp_path), tmp_path / "b.tar"))


def test_metadata_without_end_is_refused(tmp_path: Path) -> None:
    """It is read before anything is known to be signed."""
    bundle = made(tmp_path)
    (bundle / "tuf").mkdir()
    for version in range(1, 300):
        (bundle / "tuf" / f"{version}.root.json").write_text("{}")
    with Layout.at(bundle) as layout, pytest.raises(Refused, match="must have at most 259"):
        layout.metadata()
    (bundle / "tuf" / "1.root.json").write_bytes(bytes(2 << 20))
    for version in range(2, 300):
        (bundle / "tuf" / f"{version}.root.json").unlink()
    with Layout.at(bundle) as layout, pytest.raises(Refused, match="must have at most 1048576"):
        layout.metadata()


def test_an_archive_repacked_by_another_program_is_told_so(tmp_path: Path) -> None:
    bundle = made(tmp_path)
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        for path in sorted(bundle.rglob("*")):
            if path.is_file():
                tar.add(path, path.relative_to(bundle).as_posix())
    with pytest.raises(Refused, match="another header than torpor writes"):
        opened(tmp_path / "b.tar")


def test_a_bundle_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"none\.tar does not exist") as refused:
        Layout.at(tmp_path / "none.tar")
    assert refused.value.reason == "missing"


@pytest.mark.parametrize("is_one_file", [False, True])
def test_metadata_replaces_what_was_there(tmp_path: Path, is_one_file: bool) -> None:
    """In a folder and in a file; the rest stays as it was."""
    bundle = made(tmp_path)
    bundle = packed(bundle, tmp_path / "b.tar") if is_one_file else bundle
    for metadata in ({"1.root.json": b"1", "timestamp.json": b"1"}, {"timestamp.json": b"2"}):
        put_metadata(bundle, metadata)
        with Layout.at(bundle) as layout:
            assert layout.metadata() == metadata
    opened(bundle)


def test_a_folder_with_a_link_is_refused(tmp_path: Path) -> None:
    """Whether or not it leads to the right bytes."""
    bundle = made(tmp_path)
    (bundle / "index.json").rename(tmp_path / "index.json")
    (bundle / "index.json").symlink_to(tmp_path / "index.json")
    with pytest.raises(Refused) as refused:
        opened(bundle)
    assert refused.value.reason == "link"


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
def test_a_bundle_that_lacks_its_head_is_refused(tmp_path: Path, name: str) -> None:
    bundle = made(tmp_path)
    (bundle / name).unlink()
    with pytest.raises(Refused, match=name) as refused:
        opened(bundle)
    assert refused.value.reason == "missing"


def test_a_blob_of_no_component_is_refused(tmp_path: Path) -> None:
    bundle = made(tmp_path)
    (bundle / Blob.of(b"x").path).write_bytes(b"x")
    with pytest.raises(Refused) as refused:
        opened(bundle)
    assert refused.value.reason == "unexpected"


def test_a_list_of_files_that_does_not_match_its_layers_is_refused(tmp_path: Path) -> None:
    """Else a registry's tools would copy a bundle without its parts."""
    bundle = made(tmp_path)
    index = json.loads((bundle / "index.json").read_bytes())
    entry = index["manifests"][0]
    manifest = json.loads((bundle / "blobs/sha256" / entry["digest"][7:]).read_bytes())
    manifest["layers"] = manifest["layers"][1:]
    data = json.dumps(manifest).encode()
    blob = Blob.of(data)
    (bundle / blob.path).write_bytes(data)
    entry.update(digest=blob.digest, size=blob.size)
    (bundle / "index.json").write_text(json.dumps(index))
    with pytest.raises(Refused, match="other parts than its manifest has layers"):
        opened(bundle)


def test_a_list_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read into memory."""
    monkeypatch.setattr(layout_module, "LARGEST_LIST_BYTES", 100)
    with pytest.raises(Refused, match="must have at most 100"):
        opened(made(tmp_path))


def test_a_deep_json_is_refused_and_not_a_crash(tmp_path: Path) -> None:
    bundle = made(tmp_path)
    (bundle / "index.json").write_bytes(b"[" * 100_000)
    with pytest.raises(Refused, match="no JSON"):
        opened(bundle)


def test_a_real_models_file_is_read_back_by_the_library(tmp_path: Path) -> None:
    """With names, metadata and dtypes as the library writes them."""
    given = tmp_path / "m"
    given.mkdir()
    tensors = {
        "b": np.arange(5, dtype=np.int64),
        "a": np.ones((3, 2), np.float16),
        "empty": np.zeros((0, 2), np.float32),
    }
    save_file(tensors, given / "w.safetensors", metadata={"format": "pt"})
    make_bundle(tmp_path / "bundle", NAME, "1", "any", NOW, [Input("model", "m", given)])
    assert rebuilt(tmp_path / "bundle", "model/m/w.safetensors") == (given / "w.safetensors").read_bytes()


def test_signing_leaves_the_index_as_it_was(tmp_path: Path) -> None:
    """The digest that is signed is the digest that a registry shows."""
    publisher = Publisher(tmp_path)
    bundle = publisher.bundle("1")
    before = (bundle / "index.json").read_bytes()
    publisher.sign(bundle)
    assert (bundle / "index.json").read_bytes() == before
    opened(packed(bundle, tmp_path / "b.tar"))


@pytest.mark.parametrize(
    ("given", "platform", "said"),
    [
        (("node.toml", "node.toml"), "any", "2 profiles, must be one at most"),
        ((".",), "any", "must be a file"),
        (("node.toml",), "linux/arm", "the bundle is for linux/arm, must be for linux/arm64"),
        (("wrong.toml",), "any", "wrong.toml: memory is missing"),
    ],
)
def test_a_bundle_takes_one_profile_that_means_something(
    tmp_path: Path, given: tuple[str, ...], platform: str, said: str
) -> None:
    """Before anything is written."""
    (tmp_path / "node.toml").write_text(profile("arm64"))
    (tmp_path / "wrong.toml").write_text(profile("arm64").replace("memory", "# memory"))
    wanted = [Input("profile", f"p{number}", tmp_path / name) for number, name in enumerate(given)]
    with pytest.raises(Refused, match=re.escape(said)):
        make_bundle(tmp_path / "out", "s", "1", platform, NOW, wanted)
    assert not (tmp_path / "out").exists()
