"""`torpor edge` from keys to rollback, as its page has it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from edge_bundles import inputs

TORPOR = Path(sys.executable).with_name("torpor")


def edge(*arguments: str | Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | variables
    return subprocess.run(
        [TORPOR, "edge", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def done(*arguments: str | Path, folder: Path) -> str:
    result = edge(*arguments, folder=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for version in ("1", "2"):
        inputs(tmp_path / version, last=float(version), text=version)
    return tmp_path


def bundle(here: Path, version: str, out: str) -> None:
    done(
        "bundle", out, "--name", "sentences", "--release", version, "--model", f"minilm={version}/model",
        "--manifest", f"sentences={version}/manifest", folder=here,
    )  # fmt: skip


def test_from_keys_to_rollback(here: Path) -> None:
    """Two versions, one in a file and one in a folder, and the update as a thin one."""
    done("keys", "keys", "--repository", "repository", folder=here)
    assert (here / "keys" / "root.pem").stat().st_mode & 0o777 == 0o600
    (here / "keys" / "root.pem").rename(here / "root.pem.offline")  # No bundle needs it.
    bundle(here, "1", "one.tar")
    bundle(here, "2", "two")
    sign = ("--keys", "keys", "--repository", "repository")
    done("sign", "one.tar", *sign, folder=here)
    root = ("--root", "repository/1.root.json")
    assert "parts are as signed" in done("verify", "one.tar", *root, folder=here)
    node = ("--node", "node")
    assert "current: nothing" in done("status", *node, folder=here)
    assert "sentences 1 (generation 1) is served" in done("install", "one.tar", *root, *node, folder=here)
    done("sign", "two", *sign, "--days", "5", folder=here)
    assert "~ model/minilm/model.safetensors: 1024 bytes" in done(
        "diff", "one.tar", "two", "--out", "thin.tar", folder=here
    )
    assert json.loads(done("diff", "one.tar", "two", "--json", folder=here))["moved_parts"] == 4
    assert "thin" in done("verify", "thin.tar", *node, folder=here)
    installed = json.loads(done("install", "thin.tar", *node, "--json", folder=here))
    assert installed["new"] is True
    assert installed["moved_bytes"] < installed["found_bytes"]
    assert "is what is served already" in done("install", "two", *node, folder=here)
    status = json.loads(done("status", *node, "--json", folder=here))
    assert status["current"]["version"] == "2"
    assert status["before"]["version"] == "1"
    assert set(status["ends"]) == {"root", "timestamp", "snapshot", "targets"}
    said = edge("doctor", *node, "--json", folder=here)
    assert said.returncode in (0, 1)
    assert not {"bundle", "state", "metadata"} & {finding["subject"] for finding in json.loads(said.stdout)}
    assert "sentences 1 (generation 1) is served again" in done("rollback", *node, folder=here)
    old = edge("install", "one.tar", *node, folder=here)
    assert old.returncode == 1
    assert "[version]" in old.stderr


def test_with_k3s_its_folders_follow(here: Path) -> None:
    """Installation, the way back, and again by itself."""
    done("keys", "keys", "--repository", "repository", folder=here)
    sign = ("--keys", "keys", "--repository", "repository")
    places = ("--node", "node", "--k3s", "k3s")
    refused = edge("place", *places, folder=here)
    assert "k3s does not exist" in refused.stderr
    (here / "k3s").mkdir()
    assert "node serves nothing" in edge("place", *places, folder=here).stderr
    placed = here / "k3s" / "server" / "manifests" / "torpor-sentences-service.yaml"
    for version in ("1", "2"):
        bundle(here, version, f"bundle{version}")
        done("sign", f"bundle{version}", *sign, folder=here)
        done("install", f"bundle{version}", "--root", "repository/1.root.json", *places, folder=here)
        assert placed.read_text() == f"text: {version}\n"
    done("rollback", *places, folder=here)
    assert placed.read_text() == "text: 1\n"
    placed.unlink()
    assert done("place", *places, folder=here) == "torpor-sentences-service.yaml\n"
    assert placed.read_text() == "text: 1\n"


def test_a_replaced_key_comes_with_the_next_bundle(here: Path) -> None:
    done("keys", "keys", "--repository", "repository", folder=here)
    done("keys", "keys", "--repository", "repository", "--replace", "timestamp", folder=here)
    done("keys", "keys", "--repository", "repository", "--replace", "root", folder=here)
    bundle(here, "1", "one")
    done("sign", "one", "--keys", "keys", "--repository", "repository", folder=here)
    done("verify", "one", "--root", "repository/1.root.json", folder=here)
    assert not list((here / "keys").glob("*.new"))


def test_a_key_that_no_root_names_leaves_the_old_one(here: Path) -> None:
    """Nor does it leave a new one beside it, which the next call would take for an old one's."""
    for place in ("keys", "other"):
        done("keys", place, "--repository", f"repository-{place}", folder=here)
    before = (here / "keys" / "timestamp.pem").read_bytes()
    (here / "other" / "root.pem").rename(here / "keys" / "root.pem")
    refused = edge("keys", "keys", "--repository", "repository-keys", "--replace", "timestamp", folder=here)
    assert (refused.returncode, "[signature]" in refused.stderr) == (1, True)
    assert (here / "keys" / "timestamp.pem").read_bytes() == before
    assert not list((here / "keys").glob("*.new"))


@pytest.mark.parametrize(("missing", "status"), [("tuf", 2), ("another", 1)])
def test_an_extra_that_is_not_installed_is_named(here: Path, missing: str, status: int) -> None:
    """Any other module that is missing is a fault of ours, and looks like one."""
    (here / "before" / "tuf").mkdir(parents=True)
    (here / "before" / "tuf" / "__init__.py").write_text(f"raise ModuleNotFoundError('gone', name='{missing}')")
    path = os.pathsep.join([str(here / "before"), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = edge("status", "--node", "node", folder=here, PYTHONPATH=path)
    assert result.returncode == status
    advice = "torpor: the package tuf is missing: pip install torpor[edge]\n"
    assert (result.stderr == advice) is (missing == "tuf")


def test_doctor_finds_what_is_damaged(here: Path) -> None:
    """Also the state, which serving does not need."""
    done("keys", "keys", "--repository", "repository", folder=here)
    bundle(here, "1", "one")
    done("sign", "one", "--keys", "keys", "--repository", "repository", folder=here)
    done("install", "one", "--root", "repository/1.root.json", "--node", "node", folder=here)
    (here / "node" / "current" / "model" / "minilm" / "model.toml").write_text("")
    (here / "node" / "node.json").write_text("{")
    found = edge("doctor", "--node", "node", folder=here)
    assert found.returncode == 1
    assert "model.toml must have" in found.stdout
    assert "no update: node.json is no JSON" in found.stdout
    assert "current: sentences 1" in done("status", "--node", "node", folder=here)


def test_the_build_time_may_come_from_the_environment(here: Path) -> None:
    """SOURCE_DATE_EPOCH, as reproducible builds have it."""
    for out in ("a.tar", "b.tar"):
        arguments = ("bundle", out, "--name", "s", "--release", "1", "--model", "1/model")
        assert edge(*arguments, folder=here, SOURCE_DATE_EPOCH="1700000000").returncode == 0
    assert (here / "a.tar").read_bytes() == (here / "b.tar").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("verify", "nothing", "--root", "nothing"), 2, "nothing: No such file"),
        (("diff", "nothing", "nothing"), 1, "nothing does not exist [missing]"),
        (("bundle", "1", "--name", "s", "--release", "1", "--model", "1/model"), 2, "1 exists"),
        (("bundle", "x", "--name", "s", "--release", "1", "--model", "none"), 1, "none has no files [missing]"),
        (("bundle", "x", "--name", "S", "--release", "1"), 1, "the bundle's name = 'S'"),
        (("bundle", "x", "--name", "s", "--release", "1", "--built", "today"), 1, "--built = 'today'"),
        (("sign", "x", "--keys", "k", "--repository", "r", "--days", "0"), 2, "--days = 0, must be at least 1"),
        (("sign", "x", "--keys", "k", "--repository", "r"), 1, "targets.pem does not exist"),
        (("rollback", "--node", "x"), 1, "x serves nothing [state]"),
        (("verify", "x", "--node", "y"), 1, "y trusts no root yet [state]"),
        (("place", "--node", "x", "--systemd", "y"), 1, "must be systemd's folder of units"),
        (("keys", "1", "--repository", "r", "--replace", "root"), 1, "root.pem does not exist"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(here: Path, arguments: tuple[str, ...], status: int, said: str) -> None:
    result = edge(*arguments, folder=here)
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.returncode == status
    assert not (here / "x").exists()
