"""Who takes a version, and how far a roll-out goes: functions of names, shares and counts."""

from dataclasses import replace

import pytest
from edge_bundles import NOW
from torpor.edge.contents import Blob
from torpor.edge.course import Do, Terms, order
from torpor.edge.refused import Refused
from torpor.edge.reports import Report, Standing, reports_of, serving, standing, written
from torpor.edge.rollout import NEXT, Member, Offer, Offers, Rollout, labels_of, offer_of, place

NODES = [Member(f"node-{number}", {}) for number in range(2000)]
OLD, NEW = (Offer("s/any", Blob.of(b"old"), "1"), Offer("s/any" + NEXT, Blob.of(b"new"), "2", 7, Rollout(10_000)))


def test_a_share_counts_about_so_many_nodes_in_and_others_for_each_version() -> None:
    """By hash: nobody has a list of nodes."""
    rollout = Rollout(2500)
    first, second = ({n.name for n in NODES if rollout.counts_in(n, version)} for version in ("a", "b"))
    assert 440 < len(first) < 560
    assert 440 < len(second) < 560
    assert 90 < len(first & second) < 160


def test_raising_a_share_only_adds_nodes() -> None:
    """Down to none at 0 and up to all at 100 %."""
    before: set[str] = set()
    for share in (0, 1, 50, 2500, 9999, 10_000):
        now = {n.name for n in NODES if Rollout(share).counts_in(n, "a")}
        assert before <= now
        before = now
    assert not any(Rollout(0).counts_in(n, "a") for n in NODES)
    assert len(before) == len(NODES)
    assert {place(n.name, "a") for n in NODES} <= set(range(10_000))


def test_the_largest_share_that_fits_a_nodes_labels_counts() -> None:
    rollout = Rollout(100, {"ring=canary": 10_000, "ring=canary,site=a": 0, "site=b": 5000})
    shares = [rollout.share_for(labels_of(text)) for text in ("", "ring=canary,site=a", "site=b", "site=c")]
    assert shares == [100, 10_000, 5000, 100]


def test_no_share_goes_down() -> None:
    """Nodes have been told already."""
    rollout = Rollout(500, {"ring=canary": 10_000}, is_paused=True)
    assert rollout.raised(600, {"ring=rest": 1}) == Rollout(600, {"ring=canary": 10_000, "ring=rest": 1})
    assert rollout.raised(None, {}).share == 500
    with pytest.raises(Refused, match="4 %, must be at least 5 %"):
        rollout.raised(400, {})
    with pytest.raises(Refused, match="ring=canary: 99 %, must be at least 100 %"):
        rollout.raised(None, {"ring=canary": 9900})


def test_a_paused_roll_out_counts_nobody_in_and_takes_it_from_nobody() -> None:
    paused = replace(NEW, rollout=Rollout(10_000).paused())
    assert Offers(OLD, paused).wanted(NODES[0], OLD.index.digest, {}) is None
    assert Offers(OLD, paused).wanted(NODES[0], NEW.index.digest, {}) is None
    assert not Rollout(10_000).paused().is_whole


def test_a_candidate_that_is_named_no_longer_is_left_for_what_is() -> None:
    assert Offers(OLD, NEW).wanted(NODES[0], OLD.index.digest, {}) == NEW
    assert Offers(OLD, None).wanted(NODES[0], NEW.index.digest, {}) == OLD
    assert Offers(None, None).wanted(NODES[0], NEW.index.digest, {}) is None
    assert Offers(OLD, replace(NEW, rollout=Rollout(0))).wanted(NODES[0], None, {}) == OLD


def test_what_has_failed_is_taken_again_with_a_higher_attempt_only() -> None:
    """And a node that cannot have the candidate has what is in force."""
    declined = {NEW.index.digest: 7}
    assert Offers(OLD, NEW).wanted(NODES[0], OLD.index.digest, declined) is None
    assert Offers(OLD, NEW).wanted(NODES[0], NEW.index.digest, declined) == OLD
    assert Offers(OLD, replace(NEW, attempt=8)).wanted(NODES[0], OLD.index.digest, declined) is not None


def test_a_platforms_own_bundle_comes_before_any() -> None:
    offers = {offer.target: offer for offer in (OLD, replace(OLD, target="s/linux-arm64"))}
    assert Offers.among(offers, "s", "linux/arm64").stable == offers["s/linux-arm64"]
    assert Offers.among(offers, "s", "linux/amd64").stable == OLD
    assert Offers.among(offers, "other", "linux/amd64") == Offers()
    first = replace(NEW, target="s/linux-arm64" + NEXT)
    assert Offers.among({OLD.target: OLD, first.target: first}, "s", "linux/arm64") == Offers(None, first)


def test_custom_metadata_is_read_as_it_was_written() -> None:
    rolled = replace(NEW, rollout=Rollout(50, {"a=b": 1}, True))
    for offer in (rolled, replace(OLD, withdrawn=("sha256:x",), attempt=3)):
        assert offer_of(offer.target, offer.index, offer.custom()) == offer
    assert offer_of("s/any", OLD.index, None) == replace(OLD, version="")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "torpor must be an object"),
        ({}, "must have share, by_labels and paused"),
        ({"rollout": {"share": 1, "by_labels": {}}}, "must have share, by_labels and paused"),
        ({"rollout": {"share": 10_001, "by_labels": {}, "paused": False}}, r"share = 10001, must be in \[0, 10000\]"),
        ({"rollout": {"share": True, "by_labels": {}, "paused": False}}, "share = True"),
        ({"rollout": {"share": 1, "by_labels": {"a": 1}, "paused": False}}, "must be NAME=VALUE"),
        ({"rollout": {"share": 1, "by_labels": {"a=b": -1}, "paused": False}}, "the share of a=b = -1"),
        ({"attempt": "1"}, "attempt = '1'"),
        ({"version": "x y"}, "version = 'x y'"),
        ({"withdrawn": [1]}, "must be a list of digests"),
        ({"withdrawn": "sha256:x"}, "must be a list of digests"),
    ],
)
def test_custom_metadata_of_another_form_is_refused(value: object, said: str) -> None:
    """Who signed it meant something by it."""
    good = {"rollout": {"share": 1, "by_labels": {}, "paused": False}}
    custom = {"torpor": good | value if isinstance(value, dict) and value and "rollout" not in value else value}
    with pytest.raises(Refused, match=said):
        offer_of("s/any" + NEXT, OLD.index, custom)


@pytest.mark.parametrize("text", ["a", "=b", "a=b,a=c", "a=b, c=d", "a=\n"])
def test_labels_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(Refused, match="must be NAME=VALUE"):
        labels_of(text)


# Reports


def said(node: str, outcome: str, index: str = "new", **more: str) -> Report:
    return Report(NOW, node, {}, outcome, "2", index, **more)


def test_a_nodes_last_word_about_a_version_counts() -> None:
    reports = [
        said("a", "failed", text="500"), said("a", "healthy"), said("b", "healthy"), said("b", "failed", text="500"),
        said("c", "serving"), said("d", "waiting", reason="space"), said("e", "refused"), said("a", "failed", "old"),
    ]  # fmt: skip
    found = standing(reports, "new")
    assert found.healthy == {"a", "c"}
    assert found.failed == {"b": "500"}
    assert (set(found.waiting), set(found.refused), found.tried) == ({"d"}, {"e"}, 3)
    assert serving(reports) == {"a": "2", "b": "2", "c": "2"}


def test_a_file_of_events_gives_each_report_once_and_nothing_else() -> None:
    """Other events, events of nobody's, half a line after a power cut, and control characters for the operator's terminal."""
    member = Member("node\x1b[2J", {"ring": "canary"})
    good = written(member, "s", "failed", NOW, version="2", index="new", reason="", text="x" * 1000).encode()
    other = good.replace(b"dev.torpor.edge.failed", b"com.example.other").replace(b'"id":"', b'"id":"1')
    shapeless = good.replace(b'"version":"2"', b'"version":2').replace(b'"id":"', b'"id":"2')
    bare = b'{"specversion":"1.0","id":"3","source":"/a","type":"dev.torpor.edge.failed"}'
    (report,) = reports_of([bare, good, b"", b"{}", good[:50], good, other, shapeless])
    assert (report.node, report.labels, report.at) == ("node�[2J", {"ring": "canary"}, NOW)
    assert len(report.text) == 500


# The course


def stands(healthy: int, failed: int) -> Standing:
    return Standing(frozenset(map(str, range(healthy))), {f"f{n}": "" for n in range(failed)}, {}, {})


@pytest.mark.parametrize(
    ("share", "healthy", "failed", "since_s", "what"),
    [
        (0, 0, 0, 600, Do.RAISE),
        (500, 10, 0, 599, Do.WAIT),
        (500, 10, 0, 600, Do.RAISE),
        (500, 4, 0, 600, Do.WAIT),
        (500, 2, 2, 0, Do.STOP),
        (500, 0, 1, 0, Do.STOP),
        (500, 19, 1, 0, Do.WAIT),
        (500, 18, 2, 0, Do.STOP),
        (10_000, 500, 0, 600, Do.END),
    ],
)
def test_a_roll_out_is_raised_while_reports_are_good(
    share: int, healthy: int, failed: int, since_s: float, what: Do
) -> None:
    """5 % may fail, of five nodes at least; a step is held for ten minutes."""
    given = order(Rollout(share), stands(healthy, failed), since_s, Terms((500, 10_000)))
    assert given.what is what
    if what is Do.RAISE:
        assert given.share == (500 if share == 0 else 10_000)


def test_a_watch_ends_with_a_pause_and_stays_without_steps() -> None:
    assert order(Rollout(500).paused(), stands(9, 0), 600, Terms((10_000,))).what is Do.END
    assert order(Rollout(500), stands(9, 0), 600, Terms()).what is Do.WAIT
    assert order(Rollout(10_000), stands(9, 0), 600, Terms()).what is Do.END
    assert order(Rollout(500), stands(9, 0), 600, Terms((500,))).what is Do.END
