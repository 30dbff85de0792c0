"""Drives one rollout: looks at the cluster, asks the course what to do, does it, and notes at the service where it stands."""

import functools
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from torpor.knative.cluster import Cluster, ClusterAway, ClusterRefused, Object

from .counts import Counts, Window
from .course import Course, Do, Order, Seen, Terms
from .explanation import explain, failed_conditions, model_container, pods_of
from .metrics import Metrics
from .ownership import apply
from .smoke import Smoke
from .state import ANNOTATION, State, digest_of, state_of
from .targets import SERVING, InferenceService, Target

Answer = TypeVar("Answer")

POLL_S = 2.0
AWAY_TIMEOUT_S = 120.0
"""For an API server that does not answer: one that is restarted, or fails over, is back by then."""


class Superseded(ClusterRefused):
    """Somebody else drives a rollout of this service by now."""


@dataclass(frozen=True)
class Outcome:
    """what: promoted, returned or unchanged. why: of a return. lines: conditions, events and log lines that explain it."""

    what: str
    why: str = ""
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Clock:
    """Time, and waiting for it; tests have their own."""

    now_s: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class Rollout:
    """report: gets lines; the second argument is whether one is to stay, or is replaced by the next.

    metrics: None judges by readiness and restarts only, and is for rollback.
    """

    def __init__(
        self,
        cluster: Cluster,
        target: Target,
        terms: Terms,
        smoke: Smoke,
        metrics: Metrics | None,
        report: Callable[[str, bool], None],
        *,
        force: bool = False,
        clock: Clock = Clock(),
        poll_s: float = POLL_S,
        away_timeout_s: float = AWAY_TIMEOUT_S,
    ) -> None:
        self.cluster = cluster
        self.target = target
        self.terms = terms
        self._smoke = smoke
        self._metrics = metrics
        self._report = report
        self._force = force
        self._clock = clock
        self._poll_s = poll_s
        self._away_timeout_s = away_timeout_s
        self._state = State("", uuid.uuid4().hex)
        self._anchor = ""
        self._names: list[str] = []
        self._noted = ""
        self._applied = False
        self._seen: Seen | None = None
        self._smoked: str | None = None
        self._windows: dict[str, Window] = {}
        self._restarts: dict[str, int] = {}
        self._holding: tuple[str, int] | None = None
        self._conditions: dict[str, str] = {}

    # What a caller does

    def run(self) -> Outcome:
        """Apply the target's document and try it. Raises ClusterRefused, ClusterAway (`standing` says what is left)."""
        live = self._patiently(self.target.live)
        digest = digest_of(self.target.document or {})
        services = self.target.services(live)
        self._anchor = next(iter(services))
        if live is None:
            return self._install(digest, list(services))
        planned = self._patiently(lambda: self._apply(self.target.planned({}, candidate=False), dry_run=True))
        changed = self.target.changed(live, planned)
        anchor = self._patiently(lambda: self.cluster.get(SERVING, "Service", self.target.namespace, self._anchor))
        state = state_of(anchor)
        if (
            state
            and state.digest == digest
            and not changed
            and state.phase in ("rolling", "returned")
            and state.candidate
        ):
            return self._resume(state)
        if not changed:
            self._patiently(lambda: self._apply(self._kept(live, []), dry_run=False))
            return Outcome("unchanged", "what is applied makes no new revision")
        return self._begin(live, digest, changed, state)

    def take_back(self) -> Outcome:
        """All traffic to the revision before: out of a rollout, or after one. Raises as `run`."""
        live = self._patiently(self.target.live)
        services = self.target.services(live)
        self._anchor = next(iter(services))
        anchor = self._patiently(lambda: self.cluster.get(SERVING, "Service", self.target.namespace, self._anchor))
        state = state_of(anchor)
        if state is None or not (state.stable and state.candidate):
            state = self._without_state(live or {}, list(services))
        self._state = State(
            state.digest, self._state.by, "rolling", state.percent, "", state.stable, state.candidate, state.before
        )
        self._names = list(state.candidate)
        self._applied = True
        course = Course(self.terms, self._clock.now_s())
        course.take_back(self._clock.now_s(), "asked for")
        self._report(f"back to {_listed(state.stable)}, from {_listed(state.candidate)}", True)
        return self._drive(course)

    @property
    def changed(self) -> bool:
        """Whether anything in the cluster has been."""
        return self._applied

    def standing(self) -> str:
        """What is left in the cluster, for whoever breaks off, by what was seen last."""
        name = f"{self.target.kind} {self.target.name}"
        if not self._applied:
            return f"{name}: nothing was changed"
        percent = self._seen.percent if self._seen else None
        share = "an unknown share" if percent is None else f"{percent} %"
        new = _listed(self._state.candidate) or "the new revision, which is not there yet,"
        if not self._state.stable:
            return f"{name} is applied; there was no revision before it"
        return f"{name} is applied; {new} has {share} of the traffic, the rest goes to {_listed(self._state.stable)}"

    # Beginnings

    def _install(self, digest: str, names: list[str]) -> Outcome:
        document = self.target.planned({}, candidate=False)
        self._patiently(lambda: self._apply(document, dry_run=True))
        self._state.digest = digest
        self._names = names
        self._report(f"{self.target.kind} {self.target.name} is new: no revision to compare it with", True)
        self._patiently(lambda: self._apply(document, dry_run=False))
        return self._drive(Course(self.terms, self._clock.now_s()))

    def _begin(self, live: Object, digest: str, changed: list[str], earlier: State | None) -> Outcome:
        stable = {name: self.target.stable(live, name) for name in changed}
        if earlier and earlier.phase == "rolling":
            if earlier.candidate:
                self._report(f"takes the place of a rollout that had reached {earlier.percent} %", True)
            stable = {name: earlier.stable.get(name) or stable[name] for name in changed}
        stable = {name: revision for name, revision in stable.items() if revision}
        if len(stable) < len(changed):
            stable = {}
        self._names = changed
        self._state = State(digest, self._state.by, stable=stable, before=self._newest(changed))
        self._patiently(self._note)
        document = self.target.planned(stable, candidate=True)
        if isinstance(self.target, InferenceService):
            self.target.keep_percents(document, live, changed)
        self._report(f"applying; stable: {_listed(stable) or 'none'}", True)
        self._patiently(lambda: self._apply(document, dry_run=False))
        return self._drive(Course(self.terms, self._clock.now_s()))

    def _resume(self, state: State) -> Outcome:
        tried = "goes on with a rollout" if state.phase == "rolling" else "tries again what was taken back"
        self._report(f"{tried}: {_listed(state.candidate)}, at {state.percent} %", True)
        percent = state.percent if state.phase == "rolling" else 0
        self._state = State(
            state.digest, self._state.by, "rolling", percent, "", state.stable, state.candidate, state.before
        )
        self._names = list(state.candidate)
        self._applied = True
        if not percent and state.stable:
            self._patiently(lambda: self.target.offer(state.stable, state.candidate))
        return self._drive(Course(self.terms, self._clock.now_s(), percent))

    def _without_state(self, live: Object, names: list[str]) -> State:
        """Of a service that torpor has not rolled out: the newest revision, and the one before that was ready."""
        state = State("", "", candidate=self._newest(names))
        for name in list(state.candidate):
            labels = f"serving.knative.dev/service={name}"
            revisions = self.cluster.list(SERVING, "Revision", self.target.namespace, labels=labels)
            revisions.sort(
                key=lambda each: int(each["metadata"]["labels"]["serving.knative.dev/configurationGeneration"])
            )
            ready = [each["metadata"]["name"] for each in revisions if _condition(each, "Ready") == "True"]
            older = [revision for revision in ready if revision != state.candidate[name]]
            if older:
                state.stable[name] = older[-1]
            else:
                del state.candidate[name]
        if not state.stable:
            raise ClusterRefused(
                f"{self.target.kind} {self.target.name} has no revision before this one that was ready"
            )
        return state

    # The loop

    def _drive(self, course: Course) -> Outcome:
        phase = ""
        while True:
            try:
                seen = self._patiently(functools.partial(self._look, course))
                order = course.next(self._clock.now_s(), seen)
                if course.phase != phase:
                    phase = course.phase
                    self._report(self._headline(course), True)
                self._state.percent = course.percent
                self._patiently(self._note)
                if order.do is Do.END:
                    return self._end(course)
                self._patiently(functools.partial(self._do, order))
            except Superseded:
                raise
            except ClusterRefused as error:
                if course.phase == "returning" or not self._state.stable:
                    raise
                course.take_back(self._clock.now_s(), f"the API server refuses: {error}")
                continue
            self._progress(course, seen)
            self._clock.sleep(self._poll_s)

    def _do(self, order: Order) -> None:
        if order.do is Do.SHIFT:
            self.target.shift(order.percent, self._state.stable, self._state.candidate)
        elif order.do is Do.SMOKE:
            self._smoked = self._ask()

    def _end(self, course: Course) -> Outcome:
        what = course.phase
        lines = self._explanation() if what == "returned" and course.why != "asked for" else []
        self._state.phase = what
        self._state.why = course.why
        self._patiently(self._note)
        if not self._state.stable and what == "returned":
            return Outcome(what, f"{course.why}; there is no revision to return to, and it stays applied", lines)
        return Outcome(what, course.why, lines)

    def _look(self, course: Course) -> Seen:
        namespace, percents = self.target.namespace, set()
        ready, failing = True, ""
        for name in self._names:
            service = self.cluster.get(SERVING, "Service", namespace, name) or {}
            self._check_hand(name, service)
            status = service.get("status", {})
            newest = status.get("latestCreatedRevisionName", "")
            if newest and newest != self._state.before.get(name):
                mine = self._state.candidate.setdefault(name, newest)
                if mine != newest and course.phase not in ("returning", "returned"):
                    course.take_back(self._clock.now_s(), f"somebody else made the revision {newest} meanwhile")
            revision = self._state.candidate.get(name)
            percents.add(_share(service, revision or newest))
            if revision is None:
                ready = False
                owner = self.target.live() if self.target.name != name else service
                failing = failing or "; ".join(failed_conditions(owner, f"{self.target.kind} {self.target.name}"))
                continue
            found = self.cluster.get(SERVING, "Revision", namespace, revision) or {}
            self._conditions[revision] = _conditions(found)
            ready = ready and _condition(found, "Ready") == "True"
            if _condition(found, "Ready") == "False" and not _waits_for_a_node(found):
                failing = failing or "; ".join(failed_conditions(found, f"Revision {revision}"))
        candidate, stable, restarts = self._count(course)
        self._seen = Seen(
            percent=percents.pop() if len(percents) == 1 else None,
            ready=ready,
            failing=failing,
            smoke=self._smoked,
            candidate=candidate,
            stable=stable,
            restarts=restarts,
            has_stable=bool(self._state.stable),
        )
        return self._seen

    def _count(self, course: Course) -> tuple[Counts, Counts, int]:
        """What both have counted since the step began."""
        if self._metrics is None or course.phase not in ("shifting", "holding"):
            return Counts(), Counts(), 0
        restarts: dict[str, int] = {}
        for revisions in (self._state.candidate, self._state.stable):
            for revision in revisions.values():
                pods = pods_of(self.cluster, self.target.namespace, revision)
                self._windows.setdefault(revision, Window()).see(self._metrics.counts(revision, pods))
                if revisions is self._state.candidate:
                    restarts |= {f"{pod['metadata']['name']}": _restarts(pod) for pod in pods}
        step = (course.phase, course.step)
        if step != self._holding:
            self._holding = step
            self._restarts = restarts
            for window in self._windows.values():
                window.begin()
        totals = [Counts(), Counts()]
        for number, revisions in enumerate((self._state.candidate, self._state.stable)):
            for revision in revisions.values():
                totals[number] += self._windows[revision].counts()
        return totals[0], totals[1], sum(count - self._restarts.get(pod, 0) for pod, count in restarts.items())

    def _ask(self) -> str:
        """The smoke request, to each candidate by its own address; one's own body goes to the outermost."""
        for name in sorted(self._names, key=lambda each: not each.endswith("-transformer")):
            service = self.cluster.get(SERVING, "Service", self.target.namespace, name) or {}
            traffic = service.get("status", {}).get("traffic") or ()
            tagged = [
                t["url"] for t in traffic if t.get("url") and t.get("revisionName") == self._state.candidate.get(name)
            ]
            url = tagged[0] if tagged else service.get("status", {}).get("url")
            if not tagged and self._state.stable:
                return f"{name}: the route has no address for {self._state.candidate.get(name)}"
            own_body = name == self._names[0] or name.endswith("-transformer")
            if fault := self._smoke.ask(str(url), self.target.name, own_body):
                return fault
        return ""

    # Writing and waiting

    def _apply(self, document: Object, *, dry_run: bool) -> Object:
        applied = apply(self.cluster, document, self.target.namespace, dry_run=dry_run, force=self._force)
        self._applied = self._applied or not dry_run
        return applied

    def _kept(self, live: Object, changed: list[str]) -> Object:
        document = self.target.planned({}, candidate=False)
        if isinstance(self.target, InferenceService):
            self.target.keep_percents(document, live, changed)
        return document

    def _newest(self, names: list[str]) -> dict[str, str]:
        newest = {}
        for name in names:
            service = self.cluster.get(SERVING, "Service", self.target.namespace, name) or {}
            if revision := service.get("status", {}).get("latestCreatedRevisionName"):
                newest[name] = revision
        return newest

    def _note(self) -> None:
        """Write down where it stands, if that has changed."""
        text = self._state.text()
        if text == self._noted:
            return
        patch: Object = {"metadata": {"annotations": {ANNOTATION: text}}}
        try:
            self.cluster.merge(SERVING, "Service", self.target.namespace, self._anchor, patch)
        except ClusterRefused as error:
            if error.status == 404:
                return  # a new InferenceService's is not there yet
            raise
        self._noted = text

    def _check_hand(self, name: str, service: Object) -> None:
        state = state_of(service) if name == self._anchor and self._noted else None
        if state is not None and state.by != self._state.by:
            raise Superseded("another torpor has taken this rollout over: it is left to that one")

    def _patiently(self, call: Callable[[], Answer]) -> Answer:
        """As often as it takes while the API server is away. Raises ClusterAway after `away_timeout_s`."""
        since_s = self._clock.now_s()
        while True:
            try:
                return call()
            except ClusterAway as error:
                away_s = self._clock.now_s() - since_s
                if away_s >= self._away_timeout_s:
                    raise
                self._report(f"the API server is away for {away_s:.0f} s: {error}", False)
                self._clock.sleep(self._poll_s)

    # Words

    def _headline(self, course: Course) -> str:
        new, percent = _listed(self._state.candidate), course.percent
        return {
            "waiting": f"waiting for {new or 'the new revision'}",
            "smoking": f"{new} is ready; a request to it",
            "shifting": f"{new} gets {percent} %",
            "holding": f"{percent} % is there; held for {self.terms.hold_s:g} s",
            "promoting": f"{new} gets all traffic",
            "promoted": f"{new} has all traffic",
            "returning": f"taking it back: {course.why}",
            "returned": f"all traffic is with {_listed(self._state.stable) or 'nobody'}",
        }[course.phase]

    def _progress(self, course: Course, seen: Seen) -> None:
        if course.phase == "waiting":
            self._report("; ".join(self._conditions.values()) or "no revision yet", False)
        elif course.phase == "holding":
            new, old = seen.candidate, seen.stable
            counts = (
                f"{new.requests:.0f} requests, {new.errors:.0f} errors; stable {old.requests:.0f}, {old.errors:.0f}"
            )
            self._report(f"{course.percent} %: {counts}" + (f"; {course.doubt}" if course.doubt else ""), False)

    def _explanation(self) -> list[str]:
        objects = [(SERVING, "Service", name) for name in self._names]
        if isinstance(self.target, InferenceService):
            objects.insert(0, (self.target.api_version, self.target.kind, self.target.name))
        return explain(self.cluster, self.target.namespace, objects, list(self._state.candidate.values()))


def _share(service: Object, revision: str) -> int | None:
    """Of the traffic in percent, by a route that is up to date; None by one that is not."""
    status = service.get("status", {})
    if not service or status.get("observedGeneration") != service["metadata"].get("generation"):
        return None
    if _condition(service, "RoutesReady") != "True":
        return None
    traffic = status.get("traffic") or ()
    return sum(target.get("percent") or 0 for target in traffic if target.get("revisionName") == revision)


def _condition(shown: Object, kind: str) -> str:
    conditions = shown.get("status", {}).get("conditions") or ()
    return next((str(each["status"]) for each in conditions if each["type"] == kind), "")


def _waits_for_a_node(revision: Object) -> bool:
    """Whether its pods have none: one comes when other pods have gone or the cluster has grown, which takes minutes, so that it
    is the time for the pods that decides.
    """
    conditions = revision.get("status", {}).get("conditions") or ()
    return any(each["type"] == "Ready" and each.get("reason") == "Unschedulable" for each in conditions)


def _conditions(revision: Object) -> str:
    """Those that are not True, in a line."""
    conditions = revision.get("status", {}).get("conditions") or ()
    open_ = [
        f"{each['type']} {each['status']}" + (f" ({each['reason']})" if each.get("reason") else "")
        for each in conditions
        if each["status"] != "True" and each["type"] != "Active"
    ]
    name = revision.get("metadata", {}).get("name", "the revision")
    return f"{name}: {', '.join(open_) or 'ready'}"


def _restarts(pod: Object) -> int:
    model = model_container(pod)["name"]
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    return sum(each.get("restartCount", 0) for each in statuses if each["name"] == model)


def _listed(revisions: dict[str, str]) -> str:
    return ", ".join(revisions.values())
