"""`make soak`: a long stay on a cluster. Services go to zero and back, one is rolled out again and again and its pods are
killed, under load from clients that never retry; a report tells what became of each request.

Needs $KUBECONFIG, kubectl, $INGRESS (the address of Knative's ingress, http://HOST:PORT) and the image $TORPOR_IMAGE
(localhost/torpor:dev), which the Dockerfile makes. Every request counts in one column (`losses.py`): correct; inside, when it
was sent before the killed pod was dead, and not answered; refused, before the pod's endpoint was removed, or after; lost;
wrong.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import uvloop
from torpor.knative.autoscaling import PREFIX
from torpor.knative.cluster import ApiServer

from cluster import IMAGE, LIMITS, REQUESTS, SLEEPY, check_environment, container, ingress, knative_service
from first_answers import Attempt, Callers
from losses import COLUMNS, FAILED, SHARE
from wires import V2Json

TORPOR = Path(sys.executable).with_name("torpor")
REPORT = Path(__file__).resolve().parent.parent / "docs/soak.md"
FEATURES = 64
ROWS = 256
PODS = 2
"""Of the service under load."""

LOADED_CPU = "200m"
"""The limit of each: what the service under load can do is then what its pods can, as on a cluster of many nodes, and not
what ingress, API server, clients and the pods that start leave of this one's cores.
"""

DIRECT = {PREFIX + "target-burst-capacity": "0"}
"""The ingress sends to the pods themselves: the activator, which would be in the way of so few, shares their cores here."""

TOGETHER = 3
"""Requests that wake a service."""

_CAPACITY_S = 20.0
_LIMIT_S = 180.0
_TICK_S = 0.5
_KILL_TICK_S = 0.05
"""Between two looks at a pod that was killed."""
_QUIET_S = 2.0
"""Between two things that happen."""

MODEL = f'''
import os
from typing import Annotated
import torch
from torch import Tensor

class Marked:
    """Answers with its revision's mark, and with something that only the right row gives."""
    def load(self) -> None:
        self.mark = float(os.environ["MARK"])

    def predict(self, x: Annotated[Tensor, "float32[rows, {FEATURES}]"]) -> Annotated[Tensor, "float32[rows, 2]"]:
        return torch.stack((torch.full((len(x),), self.mark), x.sum(1)), 1)
'''
FOLDER = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "marked"},
    "data": {"model.py": MODEL, "model.toml": 'class = "model:Marked"\nname = "marked"\n'},
}


def _pod(mark: int, cpu: str) -> dict[str, Any]:
    """cpu: the most that its container is given."""
    marked = container(
        IMAGE,
        name="kserve-container",
        args=["/models", "--model-name", "marked"],
        env=[{"name": "MARK", "value": str(mark)}],
        ports=[{"containerPort": 8080}],
        resources={"requests": REQUESTS, "limits": LIMITS | {"cpu": cpu}},
        volumeMounts=[{"name": "model", "mountPath": "/models", "readOnly": True}],
    )
    return {"containers": [marked], "volumes": [{"name": "model", "configMap": {"name": "marked"}}]}


def inference_service(name: str, mark: int, pods: int = 0) -> dict[str, Any]:
    """pods: at least and at most; 0 for one that sleeps."""
    annotations = {"serving.kserve.io/deploymentMode": "Knative"} | (DIRECT if pods else SLEEPY)
    scale = {"minReplicas": pods, "maxReplicas": pods or 1}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"predictor": {**scale, "timeout": 30, **_pod(mark, LOADED_CPU if pods else LIMITS["cpu"])}},
    }


class Marks(Callers):
    """Clients of a service whose answers carry the mark of one of the revisions that there may be."""

    def __init__(self, host: str, rows: np.ndarray) -> None:
        wire = V2Json("marked")
        super().__init__(wire, [wire.encode({"x": row[None]}) for row in rows], rows.sum(1, keepdims=True), host)
        self.marks = {1.0}
        self.machine, port = ingress()
        self.addresses = [port]

    def check(self, values: np.ndarray, expected: np.ndarray) -> str:
        mark = float(values[0])
        return (
            super().check(values[1:], expected) if mark in self.marks else f"of revision {mark:g}, which is not there"
        )


@dataclass
class Kill:
    """A pod that was killed: `began_s` when it was asked for, `dead_s` when nothing listened there any more, `removed_s` when
    its endpoint had gone.
    """

    began_s: float
    dead_s: float = float("inf")
    removed_s: float = float("inf")

    def had_inside(self, attempt: Attempt) -> bool:
        return attempt.sent_s <= self.dead_s and attempt.ended_s >= self.began_s

    def excuses(self, attempt: Attempt) -> bool:
        return self.began_s <= attempt.sent_s <= self.removed_s


def column(attempt: Attempt, killed: Sequence[Kill]) -> str:
    """Where a request counts that was not answered right. inside: at most so many, since a client does not know its pod."""
    if attempt.outcome == "wrong":
        return "wrong"
    if attempt.outcome == "lost" and any(kill.had_inside(attempt) for kill in killed):
        return "inside"
    is_refusal = attempt.outcome == "refused" or attempt.reason.startswith(("502", "503"))
    if is_refusal and any(kill.excuses(attempt) for kill in killed):
        return "refused before"
    return "refused after" if attempt.outcome == "refused" else "lost"


@dataclass
class Soak:
    """What is to happen, and what has."""

    cycles: int
    rollouts: int
    kills: int
    namespace: str = field(default_factory=lambda: f"torpor-soak-{uuid.uuid4().hex[:8]}")
    wakes_s: dict[str, list[float]] = field(default_factory=dict)
    """From the request that woke a service to its answer, by service."""

    rolled_out_s: list[float] = field(default_factory=list)
    killed: list[Kill] = field(default_factory=list)
    loaded: Marks | None = None
    cycled: list[Marks] = field(default_factory=list)
    capacity: float = 0.0
    began_s: float = field(default_factory=time.monotonic)
    lasted_s: float = 0.0
    cut_short: str = ""
    _cluster: ApiServer = field(default_factory=ApiServer)
    _waking: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One pod of a service that sleeps starts at a time: its node would have them all at once."""

    async def run(self) -> None:
        """Do it all; what was made goes in any case."""
        await self._kubectl("create", "namespace", self.namespace)
        try:
            await self._run()
        finally:
            self.lasted_s = time.monotonic() - self.began_s
            await self._kubectl("delete", "namespace", self.namespace, "--wait=false")

    async def _run(self) -> None:
        self.say(f"namespace {self.namespace}: three services start")
        await self._apply(
            FOLDER,
            inference_service("loaded", 1, PODS),
            inference_service("isvc", 1),
            knative_service("ksvc", SLEEPY, {"timeoutSeconds": 30, **_pod(1, LIMITS["cpu"])}),
        )
        for name in ("isvc/loaded", "isvc/isvc", "ksvc/ksvc"):
            await self._kubectl("wait", "--for=condition=Ready", name, f"--timeout={_LIMIT_S:g}s")
        rows = np.random.default_rng(0).standard_normal((ROWS, FEATURES)).astype(np.float32)
        self.loaded = Marks(await self._host("loaded-predictor"), rows)
        self.cycled = [Marks(await self._host(name), rows) for name in ("isvc-predictor", "ksvc")]
        await self._until(lambda: self._ready("loaded-predictor") == PODS, "the pods of the service under load")
        # Pods start beside it, as they will all the time: they share the cores.
        async with asyncio.TaskGroup() as group:
            for name, callers in zip(("isvc-predictor", "ksvc"), self.cycled, strict=True):
                group.create_task(self._cycle(name, callers, 1))
            self.capacity = await self.loaded.capacity(_CAPACITY_S)
        self.say(f"{self.capacity:.0f} answers a second in a loop; {SHARE:.0%} of it from now on")
        self.loaded.offered = self.loaded.correct = 0
        self.began_s = time.monotonic()
        stop = asyncio.Event()
        load = asyncio.create_task(self.loaded.offer(SHARE * self.capacity, stop))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._roll_out_and_kill())
                for number, (name, callers) in enumerate(zip(("isvc-predictor", "ksvc"), self.cycled, strict=True)):
                    group.create_task(self._cycle(name, callers, (self.cycles + 1 - number) // 2))
        finally:
            stop.set()
            await load

    async def _roll_out_and_kill(self) -> None:
        for number in range(max(self.rollouts, self.kills)):
            if number < self.rollouts:
                await self._roll_out(number + 2)
            most = -(-self.kills * (number + 1) // max(1, self.rollouts))
            while len(self.killed) < min(self.kills, most):
                await self._kill()

    async def _roll_out(self, mark: int) -> None:
        assert self.loaded is not None
        self.loaded.marks.add(float(mark))
        began_s = time.monotonic()
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            json.dump(inference_service("loaded", mark, PODS), file)
            file.flush()
            steps = ("--ingress", os.environ["INGRESS"], "--steps", "50,100", "--hold", "5s", "--max-errors", "1%")
            await self._command(str(TORPOR), "rollout", file.name, "-n", self.namespace, *steps)
        self.rolled_out_s.append(time.monotonic() - began_s)
        await asyncio.sleep(_QUIET_S)
        self.loaded.marks = {float(mark)}
        self.say(f"rollout {len(self.rolled_out_s)} of {self.rollouts} took {self.rolled_out_s[-1]:.1f} s")

    async def _kill(self) -> None:
        await self._until(lambda: self._ready("loaded-predictor") == PODS, "the pods of the service under load")
        staying = await asyncio.to_thread(self._staying, "loaded-predictor")
        pod = min(staying, key=lambda pod: pod["metadata"]["creationTimestamp"])
        name, address = pod["metadata"]["name"], pod["status"]["podIP"]
        kill = Kill(time.monotonic())
        self.killed.append(kill)
        await asyncio.to_thread(_kill_processes, pod["metadata"]["uid"])
        await self._kubectl("delete", "pod", name, "--grace-period=0", "--force", "--wait=false")

        async def see(what: str, is_so: Callable[[], bool]) -> float:
            await self._until(is_so, what, _KILL_TICK_S)
            return time.monotonic()

        kill.dead_s, kill.removed_s = await asyncio.gather(
            see("the end of a killed pod", lambda: not _listens(address)),
            see("the end of its endpoint", lambda: address not in self._endpoints()),
        )
        dead_s, removed_s = kill.dead_s - kill.began_s, kill.removed_s - kill.began_s
        self.say(
            f"kill {len(self.killed)} of {self.kills}: dead after {dead_s:.2f} s, no endpoint after {removed_s:.2f} s"
        )
        await self._until(lambda: self._ready("loaded-predictor") == PODS, "a new pod")
        await asyncio.sleep(_QUIET_S)

    async def _cycle(self, service: str, callers: Marks, count: int) -> None:
        wakes_s = self.wakes_s.setdefault(service, [])
        while len(wakes_s) < count:
            await self._until(lambda: self._is_at_zero(service), f"{service} at zero")
            before = {pod["metadata"]["name"] for pod in await asyncio.to_thread(self._pods, service)}
            async with self._waking:
                took_s = await self._wake(callers)
            after = {pod["metadata"]["name"] for pod in await asyncio.to_thread(self._pods, service)}
            if after <= before:
                self.say(f"{service}: the pod that was ending has answered, which is no wake")
                continue
            wakes_s.append(took_s)
            done = sum(map(len, self.wakes_s.values()))
            self.say(f"cycle {done} of {self.cycles}: {service} woke in {wakes_s[-1]:.2f} s")

    async def _wake(self, callers: Marks) -> float:
        """Ask, and wait for all answers; the seconds to the first."""
        began_s = time.monotonic()
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[None]] = [loop.create_future() for _ in range(TOGETHER)]
        for answer in answers:
            callers.ask(answer)
        async with asyncio.timeout(_LIMIT_S):
            await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
            took_s = time.monotonic() - began_s
            await asyncio.gather(*answers)
        return took_s

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began_s:6.0f} s  {text}", file=sys.stderr, flush=True)

    def counts(self, callers: Marks) -> Counter[str]:
        counts = Counter(offered=callers.offered, correct=callers.correct)
        for attempt in callers.failures:
            counts[column(attempt, self.killed)] += 1
        return counts

    # The cluster

    def _pods(self, service: str) -> list[dict[str, Any]]:
        return self._cluster.list("v1", "Pod", self.namespace, f"serving.knative.dev/service={service}")

    def _staying(self, service: str) -> list[dict[str, Any]]:
        """Its pods that are not ending."""
        return [pod for pod in self._pods(service) if "deletionTimestamp" not in pod["metadata"]]

    def _is_at_zero(self, service: str) -> bool:
        """Whether its pods have gone, or are ending and no endpoints any more: none of them is given another request."""
        pods = self._pods(service)
        are_ending = all("deletionTimestamp" in pod["metadata"] for pod in pods)
        return are_ending and self._endpoints().isdisjoint(pod["status"].get("podIP") for pod in pods)

    def _ready(self, service: str) -> int:
        """Pods that are ready and stay; 0 while there are those of two revisions."""
        pods = self._staying(service)
        if len({pod["metadata"]["labels"]["serving.knative.dev/revision"] for pod in pods}) > 1:
            return 0
        conditions = (pod["status"].get("conditions", ()) for pod in pods)
        return sum({"Ready": "True"}.items() <= {c["type"]: c["status"] for c in each}.items() for each in conditions)

    def _endpoints(self) -> set[str]:
        """The addresses of all that a service of the namespace leads to, and that are ready."""
        slices = self._cluster.list("discovery.k8s.io/v1", "EndpointSlice", self.namespace)
        endpoints = (endpoint for one in slices for endpoint in one.get("endpoints") or ())
        return {a for endpoint in endpoints if endpoint["conditions"].get("ready") for a in endpoint["addresses"]}

    async def _host(self, service: str) -> str:
        return urlsplit(await self._kubectl("get", "ksvc", service, "-o", "jsonpath={.status.url}")).netloc

    async def _apply(self, *documents: dict[str, Any]) -> None:
        await self._kubectl(
            "apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
        )

    async def _kubectl(self, *arguments: str, given: str = "") -> str:
        return await self._command("kubectl", "-n", self.namespace, *arguments, given=given)

    async def _command(self, *command: str, given: str = "") -> str:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        said, _ = await process.communicate(given.encode())
        if process.returncode:
            raise SoakError(f"{' '.join(command)}: {said.decode(errors='replace')}")
        return said.decode()

    async def _until(self, is_so: Callable[[], bool], what: str, tick_s: float = _TICK_S) -> None:
        limit_s = time.monotonic() + _LIMIT_S
        while not await asyncio.to_thread(is_so):
            if time.monotonic() > limit_s:
                raise SoakError(f"waited {_LIMIT_S:g} s for {what}")
            await asyncio.sleep(tick_s)


class SoakError(Exception):
    """The soak cannot go on."""


def _kill_processes(pod: str) -> None:
    """SIGKILL what runs in the pod of this uid, where its node is this machine: the kubelet would say SIGTERM first."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"pod{pod}" in (process / "cgroup").read_text().replace("_", "-"):
                os.kill(int(process.name), signal.SIGKILL)


def _listens(address: str) -> bool:
    """Whether the pod's queue-proxy takes connections."""
    try:
        socket.create_connection((address, 8012), timeout=1).close()
    except OSError:
        return False
    return True


def report(soak: Soak, version: str) -> str:
    """Markdown."""
    assert soak.loaded is not None
    wakes = [s for each in soak.wakes_s.values() for s in each]
    lines = [
        "# Soak", "",
        f"Printed by `make soak ARGS='--cycles {soak.cycles} --rollouts {soak.rollouts} --kills {soak.kills}'` on "
        f"{date.today()}: {soak.lasted_s / 60:.0f} minutes on {version}, {os.cpu_count()} cores for the cluster and the "
        "clients.", "",
    ]  # fmt: skip
    if soak.cut_short:
        lines += [f"**It did not come to its end: {soak.cut_short}**", ""]
    lines += [
        f"- Under load: an InferenceService with {PODS} pods of {LOADED_CPU} CPU each and no activator before them, at "
        f"{SHARE:.0%} of the {soak.capacity:.0f} answers a second that callers in a loop reached while the others were woken. "
        "Clients never retry.",
        f"- {len(soak.rolled_out_s)} rollouts of it by `torpor rollout` (50 %, 100 %), "
        f"{_median(soak.rolled_out_s):.1f} s each in the median.",
        f"- {len(soak.killed)} of its pods killed (SIGKILL of all of its processes, and `kubectl delete pod --force`): dead "
        f"after {_median([k.dead_s - k.began_s for k in soak.killed]):.2f} s, out of the endpoints after "
        f"{_median([k.removed_s - k.began_s for k in soak.killed]):.2f} s in the median.",
        f"- {len(wakes)} cycles to zero and back of two services beside it, each woken by {TOGETHER} requests at once "
        "(window 6 s, no retention), as soon as its last pod was ending.", "",
        "| service | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|",
    ]  # fmt: skip
    for name, callers in (("under load", soak.loaded), *zip(soak.wakes_s, soak.cycled, strict=True)):
        counts = soak.counts(callers)
        lines.append(f"| {name} | " + " | ".join(str(counts[column]) for column in COLUMNS) + " |")
    lines += ["", "| from zero to the first answer | wakes | p50 | p95 | longest |", "|---|---|---|---|---|"]
    for name, each in soak.wakes_s.items():
        if each:
            p50, p95 = np.percentile(each, (50, 95))
            lines.append(f"| {name} | {len(each)} | {p50:.2f} s | {p95:.2f} s | {max(each):.2f} s |")
    return "\n".join([*lines, ""])


def _median(values: list[float]) -> float:
    return float(np.median(values)) if values else float("nan")


def _version() -> str:
    asked = subprocess.run(["kubectl", "version", "-o", "json"], capture_output=True, text=True, check=True)
    return f"Kubernetes {json.loads(asked.stdout)['serverVersion']['gitVersion']}"


async def _watched(work: Callable[[], Awaitable[None]]) -> str:
    """Run it; why it did not come to its end."""
    reason = ""
    try:
        await work()
    except* SoakError as group:
        reason = str(group.exceptions[0])
    return reason


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cycles", type=int, default=100, help="to zero and back (%(default)s)")
    parser.add_argument("--rollouts", type=int, default=10, help="(%(default)s)")
    parser.add_argument("--kills", type=int, default=20, help="of pods under load (%(default)s)")
    parser.add_argument("--report", type=Path, default=REPORT, help="where it is written (docs/soak.md)")
    options = parser.parse_args()
    check_environment(parser)
    soak = Soak(options.cycles, options.rollouts, options.kills)
    with contextlib.suppress(KeyboardInterrupt):
        soak.cut_short = "it was interrupted"
        soak.cut_short = uvloop.run(_watched(soak.run))
    if soak.loaded is None:
        print(soak.cut_short, file=sys.stderr)
        return 1
    text = report(soak, _version())
    options.report.write_text(text)
    print(text)
    failed = 0
    for callers in (soak.loaded, *soak.cycled):
        for attempt in callers.failures:
            where = column(attempt, soak.killed)
            if where in FAILED:
                failed += 1
                print(f"{where}, {attempt.sent_s - soak.began_s:.2f} s in: {attempt.reason}", file=sys.stderr)
    return 1 if failed or soak.cut_short else 0


if __name__ == "__main__":
    sys.exit(main())
