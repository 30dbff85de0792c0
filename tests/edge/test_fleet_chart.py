"""The course of a roll-out: what each node said last, at each time."""

from datetime import timedelta

from edge_bundles import NOW
from torpor.edge.fleet_chart import chart, moments
from torpor.edge.reports import Report


def said(seconds: int, node: str, outcome: str, index: str = "new") -> Report:
    return Report(NOW + timedelta(seconds=seconds), node, {}, outcome, "2", index)


def test_a_course_counts_each_nodes_last_word_about_the_version() -> None:
    """What a node serves is healthy; other versions are not counted."""
    course = moments(
        [said(0, "a", "failed"), said(1, "b", "serving"), said(2, "a", "healthy", "old"), said(3, "a", "healthy")],
        "new",
    )
    assert [(moment.counts["healthy"], moment.counts["failed"]) for moment in course] == [(0, 1), (1, 1), (2, 0)]


def test_a_chart_has_a_line_for_each_outcome_that_there_was() -> None:
    """As far as the last report; for one moment too."""
    course = moments([said(0, "a", "failed"), said(60, "b", "healthy"), said(90, "c", "healthy")], "new")
    healthy, failed, scale = chart(course, columns=10, plain=True).splitlines()
    assert (healthy.split()[0], healthy[-1], failed.split()[0], failed[-1]) == ("healthy", "2", "failed", "1")
    assert scale.endswith("1m30s")
    assert chart(course[:1], plain=True).splitlines()[0].endswith("1")
    assert chart([]) == "no node has reported on it"
