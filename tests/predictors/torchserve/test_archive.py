"""Reading archives: every kind of file that holds one, and what is refused because nobody can trust it."""

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from archives import MANIFEST, manifest, write_mar, write_tgz
from hypothesis import given
from hypothesis import strategies as st
from torpor.predictors.torchserve import archive
from torpor.predictors.torchserve.archive import Archive, read_member
from torpor.predictors.torchserve.manifest import ArchiveError, Manifest

FILES = {"handler.py": "x = 1\n", "extra/deep/labels.txt": "a\n"}
SAID = manifest("mlp", "handler.py", "2.0", serializedFile="w.pt", requirementsFile="requirements.txt")


def unpacked(path: Path) -> dict[str, str]:
    """The files of an archive."""
    with Archive.read(path).unpacked() as folder:
        return {
            str(f.relative_to(folder)): f.read_text()
            for f in folder.rglob("*")
            if f.is_file() and MANIFEST not in str(f)
        }


def zipped(path: Path, *members: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for info, data in members:
            file.writestr(info, data)
    return path


def tarred(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for info in members:
            file.addfile(info, io.BytesIO(bytes(info.size)))
    return path


def test_zip_tar_and_folder_hold_the_same(tmp_path: Path) -> None:
    """A tar has a top folder, which is none of the archive's; a folder is used where it is."""
    mar = write_mar(tmp_path / "a.mar", FILES, SAID)
    tgz = write_tgz(tmp_path / "b.tar.gz", FILES, SAID, "mlp")
    with zipfile.ZipFile(mar) as file:
        file.extractall(tmp_path / "c")
    for path in (mar, tgz, tmp_path / "c"):
        found = Archive.read(path)
        assert (found.name, found.manifest.version, found.manifest.serialized_file) == ("mlp", "2.0", "w.pt")
        assert unpacked(path) == FILES
    with Archive.read(tmp_path / "c").unpacked() as folder:
        assert folder == tmp_path / "c"


def test_folders_may_be_members(tmp_path: Path) -> None:
    """Before or behind what is in them; in a tar of a folder's content too."""
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(tmp_path / "a.mar", ("a/b/", b""), ("a/c", b"1"), ("a/", b""), ("a/", b""), ("d", b"2"))
    assert unpacked(path) == {"a/c": "1", "d": "2"}
    with Archive.read(path).unpacked() as folder:
        assert (folder / "a/b").is_dir()
    folders = [member(name, None) for name in (".", "./top", "./top/a")]
    path = tarred(tmp_path / "b.tgz", *folders, member("./top/a/b", 9), member("./own.py", 8))
    with Archive.read(path).unpacked() as folder:
        assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*")) == ["a", "a/b", "own.py"]
        assert (folder / "a/b").read_bytes() == bytes(9)


def test_a_tars_top_folder_may_have_a_short_name(tmp_path: Path) -> None:
    """What is below it has all of its own."""
    assert unpacked(tarred(tmp_path / "a.tgz", member("m/a/b", 1))) == {"a/b": "\0"}


def test_a_file_has_a_name(tmp_path: Path) -> None:
    """Nothing but the top folder has none."""
    with pytest.raises(ArchiveError, match=r"member '' is not a path inside of the archive"):
        Archive.read(tarred(tmp_path / "a.tgz", member("top/", 1)))


def test_a_file_is_read_by_the_name_that_it_is_unpacked_by(tmp_path: Path) -> None:
    """Who checks it would else see another than who runs it."""
    path = tarred(tmp_path / "a.tgz", member("top/handler.py/", 1))
    assert unpacked(path) == {"handler.py": "\0"}
    assert read_member(path, "handler.py", 1) == b"\0"


def member(name: str, size: int | None) -> tarfile.TarInfo:
    """A file of this size in bytes, or a folder."""
    info = tarfile.TarInfo(name)
    info.type, info.size = (tarfile.DIRTYPE, 0) if size is None else (tarfile.REGTYPE, size)
    return info


def test_an_unpacked_archive_goes_with_its_context(tmp_path: Path) -> None:
    """Nothing is left of it."""
    with Archive.read(write_mar(tmp_path / "a.mar", FILES)).unpacked() as folder:
        assert (folder / "handler.py").is_file()
    assert not folder.exists()


def test_without_a_manifest_the_file_names_the_model(tmp_path: Path) -> None:
    """TorchServe takes such archives, with a handler that is not there."""
    path = zipped(tmp_path / "old.mar", ("handler.py", b""))
    assert (Archive.read(path).name, Archive.read(path).manifest) == ("old", Manifest())


@pytest.mark.parametrize("name", ["a.mar", "a.model", "a.tar.gz", "a.tgz", ".mar", "a.zip"])
def test_a_files_ending_is_none_of_the_models_name(tmp_path: Path, name: str) -> None:
    """If it is an archive's, and something stands before it."""
    assert Archive.read(zipped(tmp_path / name, ("x", b""))).name == (
        "a" if name[0] == "a" and name != "a.zip" else name
    )


def test_a_name_of_a_zip_is_read_to_its_end(tmp_path: Path) -> None:
    """The standard library's ends at the first NUL, or has other slashes in it."""
    path = zipped(tmp_path / "bad.mar", ("a_b", b"x"))
    path.write_bytes(path.read_bytes().replace(b"a_b", b"a\0b"))
    with pytest.raises(ArchiveError, match=r"member 'a\\x00b' is not a path inside of the archive"):
        Archive.read(path)


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/../../b", "a//b", "./a", "a\\b", "..", "a/."])
@pytest.mark.parametrize(
    "write", [lambda p, n: zipped(p, (n, b"x")), lambda p, n: tarred(p, tarfile.TarInfo(f"top/{n}"))]
)
def test_a_member_stays_inside(tmp_path: Path, name: str, write: Callable[[Path, str], Path]) -> None:
    """A path that leads out of the folder, or may be read as one, is refused by name and writes nothing."""
    path = write(tmp_path / "bad.mar", name)
    with pytest.raises(ArchiveError, match=r"bad\.mar: member '.*' is not a path inside of the archive"):
        unpacked(path)
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(("kind", "what"), [(stat.S_IFLNK, "link"), (stat.S_IFIFO, "device")])
def test_a_zip_holds_files_and_folders_alone(tmp_path: Path, kind: int, what: str) -> None:
    """A link could lead anywhere when something is written through it."""
    info = zipfile.ZipInfo("link")
    info.external_attr = (kind | 0o777) << 16
    with pytest.raises(ArchiveError, match=rf"bad\.mar: member 'link' is a {what}, must be a file or a folder"):
        Archive.read(zipped(tmp_path / "bad.mar", (info, b"/etc/passwd")))


@pytest.mark.parametrize(
    ("kind", "what"),
    [(tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "link"), (tarfile.CHRTYPE, "device"), (tarfile.FIFOTYPE, "device")],
)
def test_a_tar_holds_files_and_folders_alone(tmp_path: Path, kind: bytes, what: str) -> None:
    """Hard links and devices too."""
    info = tarfile.TarInfo("top/odd")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(ArchiveError, match=rf"bad\.tar\.gz: member 'odd' is a {what}, must be a file or a folder"):
        Archive.read(tarred(tmp_path / "bad.tar.gz", info))


@pytest.mark.parametrize("names", [("a", "a"), ("a", "a/b"), ("a/b", "a")])
def test_a_name_is_there_once(tmp_path: Path, names: tuple[str, str]) -> None:
    """Who checks one and who runs the other would see different files."""
    with pytest.warns(UserWarning, match="Duplicate name") if names[0] == names[1] else nullcontext():  # zipfile's own
        path = zipped(tmp_path / "bad.mar", *((name, b"x") for name in names))
    with pytest.raises(ArchiveError, match=r"bad\.mar: member 'a(/b)?' is there twice"):
        Archive.read(path)


@pytest.mark.parametrize("name", ["bomb.mar", "bomb.tar.gz"])
def test_a_bomb_is_refused_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """By the size that its members say; the standard library reads no more of one than it says."""
    monkeypatch.setattr(archive, "_MOST_BYTES", 1 << 20)
    big = tarfile.TarInfo("top/big")
    big.size = 3 << 20
    write = zipped if name.endswith(".mar") else tarred
    path = write(tmp_path / name, ("big", bytes(3 << 20)) if write is zipped else big)  # type: ignore[arg-type]
    with pytest.raises(ArchiveError, match=r"member 'big' makes 3145728 bytes when unpacked, must be at most 1048576"):
        unpacked(path)


@pytest.mark.parametrize("write", [zipped, lambda path, *said: tarred(path, *(member(n, len(d)) for n, d in said))])
def test_members_may_be_large_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path]
) -> None:
    """As large as the limit says, and no byte more."""
    monkeypatch.setattr(archive, "_MOST_BYTES", 1 << 20)
    half = bytes(1 << 19)
    assert len(unpacked(write(tmp_path / "a.mar", ("top/a", half), ("top/b", half)))) == 2
    path = write(tmp_path / "b.mar", ("top/a", half), ("top/b", half), ("top/c", b"x"))
    with pytest.raises(ArchiveError, match=r"member '.*c' makes 1048577 bytes when unpacked, must be at most 1048576"):
        Archive.read(path)


def test_a_large_archive_may_make_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty times what it is."""
    monkeypatch.setattr(archive, "_MOST_BYTES", 1)
    path = zipped(tmp_path / "a.mar", ("a", bytes(1000)))
    assert 50 < path.stat().st_size < 1000
    assert unpacked(path) == {"a": "\0" * 1000}
    path = zipped(tmp_path / "b.mar", ("a", bytes(10_000)))
    with pytest.raises(ArchiveError, match=f"must be at most {20 * path.stat().st_size}$"):
        Archive.read(path)


def test_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs an inode."""
    monkeypatch.setattr(archive, "_MOST_MEMBERS", 3)
    assert len(unpacked(zipped(tmp_path / "few.mar", *((str(number), b"") for number in range(3))))) == 3
    path = zipped(tmp_path / "many.mar", *((str(number), b"") for number in range(4)))
    with pytest.raises(ArchiveError, match=r"many\.mar: has more than 3 members"):
        Archive.read(path)


def test_a_large_header_of_a_tar_is_not_read(tmp_path: Path) -> None:
    """A pax header says its size, and tarfile would read it whole."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 64 << 20
    with pytest.raises(ArchiveError, match=r"cannot be read: a header of \d+ bytes"):
        Archive.read(tarred(tmp_path / "bad.tar.gz", header))


def test_a_header_may_be_as_large_as_what_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And files of any size."""
    monkeypatch.setattr(archive, "_MOST_READ_BYTES", 8 << 10)  # tarfile reads files by that
    path = tarred(tmp_path / "a.tgz", member("top/" + "n" * 200, 1 << 20))
    with Archive.read(path).unpacked() as folder:
        assert (folder / ("n" * 200)).stat().st_size == 1 << 20
    with pytest.raises(ArchiveError, match=r"cannot be read: a header of \d+ bytes, must be at most 8192"):
        Archive.read(tarred(tmp_path / "b.tgz", member("top/" + "n" * 8190, 1)))


def test_a_huge_manifest_is_refused(tmp_path: Path) -> None:
    """In files and folders."""
    path = zipped(tmp_path / "bad.mar", (MANIFEST, b" " * ((1 << 20) + 1)))
    (tmp_path / "folder/MAR-INF").mkdir(parents=True)
    (tmp_path / "folder" / MANIFEST).write_bytes(b" " * ((1 << 20) + 1))
    for place in (path, tmp_path / "folder"):
        with pytest.raises(ArchiveError, match=rf"{MANIFEST}: size = 1048577 bytes, must be at most 1048576"):
            Archive.read(place)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON"),
        ("[]", "is a list, must be an object"),
        ('{"model": 3}', "model is a int, must be an object"),
        ('{"model": {"handler": ["x"]}}', r"model\.handler is a list, must be a text"),
        ('{"model": {"modelName": "a/b"}}', r"model\.modelName = 'a/b', must be printable and without /"),
        ('{"model": {"configFile": "../x"}}', r"model\.configFile = '\.\./x' is not a path inside of the archive"),
        ('{"model": {"modelFile": "/x"}}', r"model\.modelFile = '/x' is not a path inside of the archive"),
    ],
)
def test_a_wrong_manifest_is_named(tmp_path: Path, text: str, reason: str) -> None:
    """Archive, member, field and value."""
    with pytest.raises(ArchiveError, match=rf"^bad\.mar: {MANIFEST}:? {reason}"):
        Archive.read(zipped(tmp_path / "bad.mar", (MANIFEST, text.encode())))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is neither a zip nor a gzipped tar"),
        (b"text", "is neither a zip nor a gzipped tar"),
        (b"PK\x03\x04nonsense", "cannot be read: "),
        (b"\x1f\x8b\x08 nonsense", "cannot be read: "),
    ],
)
def test_what_is_no_archive_is_said_to_be_none(tmp_path: Path, content: bytes, reason: str) -> None:
    """Not a traceback of the standard library's."""
    path = tmp_path / "bad.mar"
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=rf"^bad\.mar: {reason}"):
        Archive.read(path)


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    """Nobody knows the password."""
    path = write_mar(tmp_path / "a.mar", {"handler.py": "x"})
    content = bytearray(path.read_bytes())
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(magic) + at] |= 1
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"a\.mar: cannot be read: .*encrypted"):
        unpacked(path)


@given(st.binary(max_size=200), st.integers(0, 400), st.sampled_from([".mar", ".tar.gz"]))
def test_a_damaged_archive_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int, suffix: str
) -> None:
    """Whatever its bytes are, nothing but ArchiveError comes of it."""
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / f"a{suffix}"
    write_mar(path, FILES, SAID) if suffix == ".mar" else write_tgz(path, FILES, SAID, "top")
    content = bytearray(path.read_bytes())
    content[at : at + len(noise)] = noise
    path.write_bytes(content)
    with suppress(ArchiveError):
        unpacked(path)


def test_a_small_member_is_read_by_name(tmp_path: Path) -> None:
    """Of folders as of files; what is not there is None."""
    path = write_mar(tmp_path / "a.mar", FILES)
    assert read_member(path, "handler.py", 100) == b"x = 1\n"
    assert read_member(path, "nothing.py", 100) is None
    with zipfile.ZipFile(path) as file:
        file.extractall(tmp_path / "folder")
    for place in (path, tmp_path / "folder"):
        assert read_member(place, "handler.py", 6) == b"x = 1\n"
        assert read_member(place, "extra", 100) is None
        with pytest.raises(ArchiveError, match=rf"^{place.name}: handler\.py: size = 6 bytes, must be at most 5$"):
            read_member(place, "handler.py", 5)


def spoilt(path: Path, at: int, by: bytes) -> Path:
    """With these bytes at a place."""
    content = bytearray(path.read_bytes())
    content[at : at + len(by)] = by
    path.write_bytes(content)
    return path


def test_whatever_is_wrong_with_a_file_is_named(tmp_path: Path) -> None:
    """Not as the standard library's own error."""
    broken = spoilt(zipped(tmp_path / "a.mar", ("a", b"content" * 9)), 30 + len("a"), b"\xff")
    unknown = spoilt(zipped(tmp_path / "b.mar", ("a", b"")), -22 - 46 - len("a") + 10, b"\x63")
    cut = tarred(tmp_path / "c.tgz", member("top/a", 1 << 16))
    os.truncate(cut, cut.stat().st_size - 20)
    for path, reason in (
        (broken, "Error -3 while"),
        (unknown, "That compression method"),
        (cut, "Compressed file ended"),
    ):
        with pytest.raises(ArchiveError, match=rf"^{path.name}: cannot be read: {reason}"):
            unpacked(path)
    with pytest.raises(ArchiveError, match=r"cannot be read: .*No such file"):
        Archive.read(tmp_path / "none.mar")
