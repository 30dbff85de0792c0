"""What a rollout does, and says, when the cluster fails it: over the real client, with an API server that fails on demand."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_api_server import FakeApiServer
from fake_kserve import COMPONENTS, FakeKServe
from torpor.knative.rollout import (
    ApiServer,
    ClusterAway,
    ClusterRefused,
    Outcome,
    PodMetrics,
    Rollout,
    Smoke,
    Superseded,
    Terms,
    target_of,
)
from torpor.knative.rollout.rollout import Clock
from torpor.predictors.errors import InvalidInput

pytest.importorskip("kubernetes")


class Answered(Smoke):
    """No request: the ingress is none of the API server's."""

    def ask(self, url: str, service_name: str, own_body: bool = True) -> str:
        return ""


class Refused(Smoke):
    """A candidate whose every smoke request fails. asked: how often one was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def ask(self, url: str, service_name: str, own_body: bool = True) -> str:
        self.asked += 1
        return "500"


class VirtualClock:
    """Sleeping takes no time. events: what happens when it has slept so often."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept = 0
        self.events: dict[int, Callable[[], None]] = {}

    def clock(self) -> Clock:
        return Clock(lambda: self.now_s, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept += 1
        if self.slept in self.events:
            self.events[self.slept]()


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeApiServer], None]:
    """Makes an API server the one that clients ask."""

    def write(server: FakeApiServer) -> None:
        cluster = {"name": "c", "cluster": {"server": server.url}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        user = {"name": "u", "user": {"token": "t"}}
        config = {"clusters": [cluster], "contexts": [context], "users": [user], "current-context": "c"}
        (tmp_path / "config").write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **config}))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))

    return write


@pytest.fixture
def server(use: Callable[[FakeApiServer], None]) -> Iterator[FakeApiServer]:
    with FakeApiServer() as server:
        use(server)
        yield server


def document(mark: int) -> dict[str, Any]:
    container = {"image": f"localhost/torpor:{mark}"}
    spec = {"template": {"spec": {"containers": [container]}}}
    return {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec}


def inference_service(predictor: int, transformer: int) -> dict[str, Any]:
    def component(mark: int) -> dict[str, Any]:
        return {"containers": [{"image": f"localhost/torpor:{mark}"}]}

    spec = {"predictor": component(predictor), "transformer": component(transformer)}
    metadata = {"name": "m", "annotations": {"serving.kserve.io/deploymentMode": "Knative"}}
    return {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": metadata, "spec": spec}


def rollout(
    mark: int,
    clock: VirtualClock | None = None,
    said: list[str] | None = None,
    force: bool = False,
    smoke: Smoke | None = None,
    of: dict[str, Any] | None = None,
) -> Rollout:
    cluster = ApiServer()
    target = target_of(cluster, "default", of or document(mark))
    assert target is not None
    said = [] if said is None else said
    return Rollout(
        cluster, target, Terms(), smoke or Answered(), PodMetrics(cluster), lambda text, stays: said.append(text),
        force=force, clock=(clock or VirtualClock()).clock(),
    )  # fmt: skip


@pytest.fixture
def stable(server: FakeApiServer) -> FakeApiServer:
    """With a first revision that has all traffic."""
    assert rollout(1).run().what == "promoted"
    return server


def test_steps_end_in_a_promotion(stable: FakeApiServer) -> None:
    """Nothing fails here, so what fails below fails by its fault."""
    assert rollout(2).run() == Outcome("promoted")
    assert stable.traffic() == {"s-00002": 100}
    assert rollout(2).run().what == "unchanged"


def test_errors_bring_all_traffic_back(stable: FakeApiServer) -> None:
    """And the last lines of the log are in what is said."""
    stable.errors = True
    outcome = rollout(2).run()
    assert (outcome.what, stable.traffic()) == ("returned", {"s-00001": 100})
    assert "errors of" in outcome.why
    assert "the last line of its log" in "\n".join(outcome.lines)


def test_pods_without_a_node_are_waited_for(stable: FakeApiServer) -> None:
    """Other pods go or a node comes, if not at once; any other failure of that length takes the candidate back."""
    waited = int(3 * Terms().failing_s)
    stable.ready, stable.unready = False, ("False", "Unschedulable")
    clock = VirtualClock()
    clock.events = {waited: stable.get_ready}
    assert rollout(2, clock).run().what == "promoted"
    stable.ready, stable.unready = False, ("False", "ContainerMissing")
    clock = VirtualClock()
    clock.events = {waited: stable.get_ready}
    outcome = rollout(3, clock).run()
    assert outcome.what == "returned"
    assert "ContainerMissing" in outcome.why


def test_pods_that_never_get_a_node_take_the_candidate_back(stable: FakeApiServer) -> None:
    stable.ready, stable.unready = False, ("False", "Unschedulable")
    outcome = rollout(2).run()
    assert (outcome.what, stable.traffic()) == ("returned", {"s-00001": 100})
    assert "Unschedulable" in "\n".join([outcome.why, *outcome.lines])


@pytest.fixture
def chain(use: Callable[[FakeApiServer], None]) -> Iterator[FakeKServe]:
    """A transformer and a predictor, whose first revisions have all traffic."""
    with FakeKServe() as server:
        use(server)
        assert rollout(1, of=inference_service(1, 1)).run().what == "promoted"
        yield server


def test_a_chains_revisions_are_rolled_out_together(chain: FakeKServe) -> None:
    """Each gets its share, and is judged; then all of it."""
    clock, shares = VirtualClock(), list[dict[str, int]]()
    clock.events = {
        slept: lambda: shares.extend(chain.shares(component) for component in COMPONENTS) for slept in range(1, 60)
    }
    assert rollout(2, clock, of=inference_service(2, 2)).run().what == "promoted"
    for component in COMPONENTS:
        assert chain.shares(component) == {f"m-{component}-00002": 100}
        assert {f"m-{component}-00001": 90, f"m-{component}-00002": 10} in shares


@pytest.mark.parametrize("bad", COMPONENTS)
def test_one_bad_revision_takes_both_of_a_chain_back(chain: FakeKServe, bad: str) -> None:
    """They were made for each other."""
    chain.bad = {bad}
    outcome = rollout(2, of=inference_service(2, 2)).run()
    assert outcome.what == "returned"
    assert "errors of" in outcome.why
    assert [chain.shares(component) for component in COMPONENTS] == [{f"m-{name}-00001": 100} for name in COMPONENTS]


def test_a_component_that_does_not_change_keeps_its_revision(chain: FakeKServe) -> None:
    """Whatever the other one's rollout comes to, and whichever of them it is."""
    chain.bad = {"transformer"}
    assert rollout(2, of=inference_service(1, 2)).run().what == "returned"
    assert chain.shares("predictor") == {"m-predictor-00001": 100}
    assert chain.shares("transformer") == {"m-transformer-00001": 100}
    chain.bad = set()
    assert rollout(3, of=inference_service(2, 1)).run().what == "promoted"
    assert chain.shares("predictor") == {"m-predictor-00002": 100}


def test_each_smoke_request_counts_once(stable: FakeApiServer) -> None:
    """Its tries are requests, not looks at one that has failed."""
    smoke = Refused()
    outcome = rollout(2, smoke=smoke).run()
    assert (outcome.what, outcome.why) == ("returned", "the smoke request: 500")
    assert smoke.asked == Terms().smoke_tries
    assert stable.traffic() == {"s-00001": 100}


def test_a_restart_before_its_step_is_not_the_candidates_fault(stable: FakeApiServer) -> None:
    """What counts is a container that is restarted while it has traffic."""
    stable.restarts = 2
    assert rollout(2).run().what == "promoted"
    clock = VirtualClock()
    clock.events = {6: lambda: setattr(stable, "restarts", 3)}
    outcome = rollout(3, clock).run()
    assert (outcome.what, outcome.why) == ("returned", "a container of the candidate was restarted at 10 %")


def test_a_revision_that_somebody_else_makes_meanwhile_ends_it(stable: FakeApiServer) -> None:
    """It was judged for another one than would be promoted now."""
    clock = VirtualClock()
    clock.events = {6: stable.deploy}
    outcome = rollout(2, clock).run()
    assert (outcome.what, outcome.why) == ("returned", "somebody else made the revision s-00003 meanwhile")
    assert stable.traffic() == {"s-00001": 100}


def test_an_api_server_that_comes_back_is_waited_for(stable: FakeApiServer) -> None:
    """A minute without it, in the middle of a step."""
    clock, said = VirtualClock(), list[str]()
    clock.events = {6: lambda: setattr(stable, "away", True), 36: lambda: setattr(stable, "away", False)}
    assert rollout(2, clock, said).run().what == "promoted"
    assert any("the API server is away for 58 s" in line for line in said)


def test_an_api_server_that_stays_away_ends_it_with_what_is_left(stable: FakeApiServer) -> None:
    """And the same rollout goes on when it is there again."""
    clock = VirtualClock()
    clock.events = {6: lambda: setattr(stable, "away", True)}
    broken = rollout(2, clock)
    with pytest.raises(ClusterAway):
        broken.run()
    assert broken.standing() == "Service s is applied; s-00002 has 10 % of the traffic, the rest goes to s-00001"
    stable.away = False
    said = list[str]()
    assert rollout(2, said=said).run().what == "promoted"
    assert "goes on with a rollout: s-00002, at 10 %" in said


@pytest.mark.parametrize("going_on", [True, False])
def test_interrupted_anywhere_it_goes_on_or_goes_back(stable: FakeApiServer, going_on: bool) -> None:
    """After each look, until there is none more to interrupt; what it says of the traffic is what the cluster has."""
    mark, interrupted = 2, 0

    def interrupt() -> None:
        raise KeyboardInterrupt

    while True:
        before = stable.traffic()
        clock = VirtualClock()
        clock.events = {interrupted + 1: interrupt}
        broken = rollout(mark, clock)
        try:
            broken.run()
            break
        except KeyboardInterrupt:
            interrupted += 1
        new = f"s-{mark:05}"
        assert stable.service is not None
        if going_on:
            assert rollout(mark).run().what == "promoted"
            assert stable.traffic() == {new: 100}
        else:
            assert rollout(mark).take_back().what == "returned"
            assert stable.traffic() == before
        mark += 1
        interrupted += 5  # each fifth: all of them take a minute
    assert interrupted > 10


def test_a_webhook_that_refuses_leaves_nothing(stable: FakeApiServer) -> None:
    """It is asked by a dry run first."""
    stable.refusal = "timeoutSeconds must be at most 600"
    refused = rollout(2)
    with pytest.raises(ClusterRefused, match="timeoutSeconds must be at most 600"):
        refused.run()
    assert refused.standing() == "Service s: nothing was changed"
    assert stable.traffic() == {"s-00001": 100}


def test_pods_that_may_not_be_asked_take_it_back(stable: FakeApiServer) -> None:
    """Without counts nobody could judge it: the share that it has goes back, and the message names what is forbidden."""
    stable.forbidden = True
    outcome = rollout(2).run()
    assert (outcome.what, stable.traffic()) == ("returned", {"s-00001": 100})
    assert "pods/proxy is forbidden" in outcome.why


def test_a_quota_is_named_where_pods_do_not_come(stable: FakeApiServer) -> None:
    """By the event of the ReplicaSet, since the revision only says that it waits."""
    stable.ready = False
    about = {"kind": "ReplicaSet", "name": "s-00002-deployment-abc"}
    stable.events = [{"involvedObject": about, "reason": "FailedCreate", "message": "exceeded quota: pods=1"}]
    outcome = rollout(2).run()
    assert (outcome.what, stable.traffic()) == ("returned", {"s-00001": 100})
    assert outcome.why == "not ready after 300 s"
    assert "event of ReplicaSet s-00002-deployment-abc: FailedCreate: exceeded quota: pods=1" in outcome.lines


def test_what_was_taken_back_can_be_tried_again(stable: FakeApiServer) -> None:
    """By the same command, when what was wrong beside it has gone."""
    stable.errors = True
    assert rollout(2).run().what == "returned"
    stable.errors = False
    assert rollout(2).run().what == "promoted"
    assert stable.traffic() == {"s-00002": 100}


def test_another_rollout_takes_over_and_the_first_lets_go(stable: FakeApiServer) -> None:
    """Two would pull the traffic to and fro."""
    clock = VirtualClock()
    clock.events = {8: lambda: rollout(2).take_back()}  # type: ignore[dict-item]
    with pytest.raises(Superseded):
        rollout(2, clock).run()
    assert stable.traffic() == {"s-00001": 100}


def test_another_programs_fields_are_asked_about_and_kubectls_taken(stable: FakeApiServer) -> None:
    """What a person applied with kubectl is theirs to roll out; a program would set its values again."""
    stable.manager = "argocd-controller"
    with pytest.raises(ClusterRefused, match=r"belong to argocd-controller.*--force-conflicts"):
        rollout(2).run()
    assert rollout(2, force=True).run().what == "promoted"
    stable.manager = "kubectl-client-side-apply"
    assert rollout(3).run().what == "promoted"


def test_a_traffic_block_of_ones_own_is_refused() -> None:
    """Two could not both share it out."""
    given = document(1)
    given["spec"]["traffic"] = [{"revisionName": "s-00001", "percent": 100}]
    with pytest.raises(InvalidInput, match=r"spec\.traffic is given"):
        target_of(None, "default", given)  # type: ignore[arg-type]


def test_the_docs_lines_run(server: FakeApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    """The Python of docs/rollout.md as it stands there, but for the request to an ingress that is not there."""
    text = (Path(__file__).parents[2] / "docs/rollout.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0].replace("Smoke()", "Answered()")
    names: dict[str, Any] = {"document": document(1), "Answered": Answered}
    exec(code, names)
    assert names["outcome"] == Outcome("promoted")
    assert "s-00001 has all traffic" in capsys.readouterr().out


def test_the_docs_options_are_the_commands() -> None:
    """Each that the page names."""
    text = (Path(__file__).parents[2] / "docs/rollout.md").read_text()
    for option in sorted(set(re.findall(r"`(--[a-z-]+)", text))):
        assert main_help("rollout").find(option) >= 0, option


def main_help(command: str) -> str:
    import argparse

    from torpor.knative.rollout_command import add_command

    commands = argparse.ArgumentParser().add_subparsers()
    add_command(commands)
    return str(commands.choices[command].format_help())


def test_a_file_with_errors_or_without_a_service_changes_nothing(
    server: FakeApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, the fault by its line, and not one request to the cluster for a file that does not hold."""
    from torpor.predictors.command import main

    wrong = document(1)
    wrong["spec"]["template"]["spec"]["timeoutSeconds"] = "soon"
    (tmp_path / "wrong.yaml").write_text(json.dumps(wrong))
    assert main(["rollout", str(tmp_path / "wrong.yaml")]) == 2
    assert "timeoutSeconds" in capsys.readouterr().err
    assert server.asked == 0
    (tmp_path / "none.yaml").write_text(
        json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}})
    )
    assert main(["rollout", str(tmp_path / "none.yaml")]) == 2
    assert "no InferenceService and no Knative Service" in capsys.readouterr().err
    assert main(["rollback", "nobody"]) == 2
    assert "Knative Service nobody in the namespace default" in capsys.readouterr().err
