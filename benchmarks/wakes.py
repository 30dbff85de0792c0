"""From zero to the first answer on a real cluster: `wakes.py [--rounds N]`.

Four Knative Services that differ in one command alone, of the same image, are woken in turns through the ingress: torpor over
the MLP; a bare script of torch, the same class and the standard library's server; KServe's own SDK over the class; that server
without torch. Each wake is one request while the service has no pod at all, timed from before its connection is opened until
its answer is there, which is compared with raw torch's.

It ends with 0 when torpor's median is at most 1.1 times the script's, with 1 when it is not, with 2 after a wrong answer.

Needs $KUBECONFIG, $INGRESS (the address of Knative's ingress, http://HOST:PORT), kubectl, and as $TORPOR_WOKEN_IMAGE
(localhost/torpor-woken:dev) the image that woken/Dockerfile makes. A round takes about a minute.
"""

import argparse
import http.client
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from bodies import Row
from cluster import LIMIT_S, SLEEPY, Kubectl, Pods, check_environment, container, ingress, knative_service
from loads import BadAnswerError
from measurements import probe_rows
from probe import is_right
from run import alone, say
from wires import V1Json

IMAGE = os.environ.get("TORPOR_WOKEN_IMAGE", "localhost/torpor-woken:dev")
TORPOR, SCRIPT, EMPTY = "torpor", "script of torch", "without torch"
COMMANDS = {
    TORPOR: ["torpor", "serve", "/opt/torpor/examples/mlp"],
    SCRIPT: ["python", "/opt/woken/script.py"],
    "stock KServe": ["python", "/opt/woken/stock.py"],
    EMPTY: ["python", "/opt/woken/empty.py"],
}
FACTOR = 1.1
QUIET_S = 1.0
"""From the end of a service's last pod until it is woken."""


def service(label: str) -> dict[str, Any]:
    spec = {"timeoutSeconds": 60, "containers": [container(IMAGE, command=COMMANDS[label])]}
    return knative_service(label.lower().replace(" ", "-"), SLEEPY, spec)


@dataclass
class Sleeper:
    """A service that sleeps as soon as it may."""

    label: str
    host: str
    pods: Pods
    rows: Sequence[Row]
    expected: np.ndarray
    """What the rows are answered with."""

    wakes_s: list[float] = field(default_factory=list)

    def wake(self) -> None:
        """Raises BadAnswerError."""
        index = len(self.wakes_s) % len(self.rows)
        wire = V1Json("/v1/models/mlp:predict")
        asked = wire.encode(self.rows[index])
        self.pods.wait_for_none()
        time.sleep(QUIET_S)
        self.pods.forget()
        began_s = time.monotonic()
        connection = http.client.HTTPConnection(*ingress(), timeout=LIMIT_S)
        connection.request("POST", asked.path, asked.body, {**asked.headers, "Host": self.host})
        response = connection.getresponse()
        body = response.read()
        taken_s = time.monotonic() - began_s
        connection.close()
        if response.status != 200:
            raise BadAnswerError(f"{self.label}: {response.status} {body[:200]!r}")
        if not is_right(wire.decode({}, body)[0], self.expected[index]):
            raise BadAnswerError(f"{self.label}: {body[:200]!r} instead of {self.expected[index]}")
        self.wakes_s.append(taken_s)


def sleepers(kubectl: Kubectl, stack: ExitStack) -> list[Sleeper]:
    """All four, each once it has been ready."""
    rows, expected = probe_rows("mlp")
    made = []
    for label in COMMANDS:
        document = service(label)
        name = document["metadata"]["name"]
        kubectl.apply(document)
        pods = Pods(kubectl, name)
        stack.callback(pods.stop)
        made.append(Sleeper(label, kubectl.host(name), pods, rows, expected * (label != EMPTY)))
    return made


def table(all_of_them: list[Sleeper]) -> str:
    base = next(median(each.wakes_s) for each in all_of_them if each.label == SCRIPT)
    lines = ["\nzero to the first answer, MLP, medians"]
    for each in all_of_them:
        middle = median(each.wakes_s)
        rounds = " ".join(f"{wake_s:.2f}" for wake_s in each.wakes_s)
        lines.append(f"  {each.label:<16} {middle:6.2f} s  {middle / base:5.2f} x {SCRIPT}  rounds {rounds}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="wakes", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="wakes of each (%(default)s)")
    options = parser.parse_args()
    check_environment(parser)
    with alone(), Kubectl("wakes") as kubectl, ExitStack() as stack:
        all_of_them = sleepers(kubectl, stack)
        for number in range(options.rounds):
            turn = number % len(all_of_them)
            for each in all_of_them[turn:] + all_of_them[:turn]:
                try:
                    each.wake()
                except (BadAnswerError, OSError, http.client.HTTPException) as error:
                    say(f"{each.label}: {error!r}")
                    return 2
                say(f"{number + 1}/{options.rounds}: {each.label} {each.wakes_s[-1]:.2f} s")
    print(table(all_of_them))
    of = {each.label: median(each.wakes_s) for each in all_of_them}
    return 0 if of[TORPOR] <= FACTOR * of[SCRIPT] else 1


if __name__ == "__main__":
    sys.exit(main())
