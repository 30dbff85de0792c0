"""What a node says of itself: what is damaged takes nothing else from it."""

from pathlib import Path

import pytest
from edge_bundles import NOW, Publisher
from failing_disk import Unsynced
from torpor.edge.layout import Layout
from torpor.edge.node import Node
from torpor.edge.refused import Refused
from torpor.edge.status import status


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """Which serves the second of two versions."""
    publisher, node = Publisher(tmp_path / "publisher"), Node(tmp_path / "node", Unsynced())
    for version in ("1", "2"):
        with Layout.at(publisher.bundle(version, float(version))) as layout:
            node.install(layout, NOW, publisher.root)
    return node


def test_a_node_says_what_it_serves_and_would_go_back_to(node: Node, tmp_path: Path) -> None:
    """And until when it takes updates; a bare one has neither."""
    said = status(node)
    assert (said["current"]["version"], said["before"]["version"]) == ("2", "1")
    assert set(said["ends"]) == {"root", "timestamp", "snapshot", "targets"}
    assert [record["version"] for record in said["history"]] == ["1", "2"]
    assert status(Node(tmp_path / "bare")) == {"current": None, "before": None}


def test_a_way_back_that_is_damaged_is_none(node: Node) -> None:
    (node.generations.path(1) / "seal.json").unlink()
    said = status(node)
    assert (said["current"]["version"], said["before"]) == ("2", None)


def test_a_state_that_is_damaged_is_said_beside_what_is_served(node: Node) -> None:
    for text, why in (("{", "node.json is no JSON"), ("{}", "node.json is damaged")):
        (node.root / "node.json").write_text(text)
        said = status(node)
        assert said["current"]["version"] == "2"
        assert why in said["state"]


def test_what_is_served_and_damaged_is_refused(node: Node) -> None:
    (node.generations.path(2) / "seal.json").unlink()
    with pytest.raises(Refused, match="generation 2: its seal cannot be read"):
        status(node)
