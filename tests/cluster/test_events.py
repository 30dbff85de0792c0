"""Events through a real Knative: a broker asks a transformer at zero, which asks a predictor at zero; the answer is an event.

Needs $KUBECONFIG, kubectl, Knative Eventing, and the image $TORPOR_IMAGE (localhost/torpor:dev), which the Dockerfile makes.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_namespace import IMAGE, NEEDS_CLUSTER, Namespace
from event_answers import Answers, answers_in, assert_each_is_answered

pytestmark = NEEDS_CLUSTER

ROOT = Path(__file__).resolve().parent.parent.parent
TORPOR = Path(sys.executable).with_name("torpor")
NAMESPACE = Namespace("events", "inferenceservice,ksvc,broker,trigger,pods", timeout_s=400)
BROKER = f"http://broker-ingress.knative-eventing.svc.cluster.local/{NAMESPACE.name}/default"
PODS = "serving.kserve.io/inferenceservice=sentences"
PREDICTOR = f"{PODS},component=predictor"
ROUNDS = (300, 300, 400)
"""Events of each round; all pods are at zero before it, and the predictor's is killed in it."""


@pytest.fixture(scope="module", autouse=True)
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The example's objects, the InferenceService and its Trigger as rendered, ready; the namespace goes at the end."""
    if subprocess.run(["kubectl", "get", "crd", "triggers.eventing.knative.dev"], capture_output=True).returncode:
        pytest.skip("no Knative Eventing on this cluster")
    quick = '    serving.kserve.io/deploymentMode: Knative\n    autoscaling.knative.dev/window: "6s"\n'
    text = (ROOT / "examples/sentences/events.yaml").read_text().replace("localhost/torpor:dev", IMAGE)
    text = text.replace("    serving.kserve.io/deploymentMode: Knative\n", quick)
    documents = text.split("\n---\n")
    asked = next(document for document in documents if "kind: InferenceService" in document)
    others = [document for document in documents if document is not asked and "name: ask " not in document]
    folder = tmp_path_factory.mktemp("events")
    (folder / "sentences.yaml").write_text(asked)
    rendering = [TORPOR, "render", folder / "sentences.yaml", folder / "rendered", "--trigger", "text"]
    subprocess.run(rendering, check=True)
    with NAMESPACE:
        NAMESPACE.kubectl("apply", "-f", "-", given="\n---\n".join(others))
        NAMESPACE.kubectl("apply", "-k", str(folder / "rendered"))
        NAMESPACE.kubectl("wait", "--for=condition=Ready", "inferenceservice/sentences", "--timeout=240s")
        triggers = ("trigger/sentences-transformer", "trigger/tell")
        NAMESPACE.kubectl("wait", "--for=condition=Ready", "broker/default", *triggers, "--timeout=120s")
        NAMESPACE.kubectl(
            "wait", "--for=condition=Available", "deployment/answers", "deployment/sink", "--timeout=120s"
        )
        until_triggers_deliver()
        yield


def until_triggers_deliver() -> None:
    """A trigger is ready before its channel knows of it; what is sent meanwhile is accepted, and delivered to nobody."""
    for number in range(8):
        send(f"probe-{number}", 1)
        limit_s = time.monotonic() + 30
        while time.monotonic() < limit_s:
            if told("probe-"):
                return
            time.sleep(1)
    pytest.fail(f"no event was answered\n{NAMESPACE.state()}")


def wait_for_zero() -> None:
    NAMESPACE.kubectl("wait", "--for=delete", "pod", "-l", PODS, "--timeout=180s")


def send(name: str, count: int) -> None:
    """Start a pod that sends so many events."""
    what = ["--type", "text", "--content-type", "text/plain", "--data", f"a sentence of {name}", "--id", name]
    command = ["torpor", "events", "send", BROKER, "--count", str(count), "--timeout-s", "300", *what]
    pod = ["run", name, f"--image={IMAGE}", "--image-pull-policy=IfNotPresent", "--restart=Never", "--command"]
    NAMESPACE.kubectl(*pod, "--", *command)


def told(name: str) -> Answers:
    """The answers that have come, of the questions whose id begins so."""
    return answers_in(NAMESPACE.kubectl("logs", "deployment/sink", "--tail=-1").splitlines(), name)


def test_every_event_is_answered_whatever_happens_to_the_predictor() -> None:
    """A thousand events, three kills and three wakes: each is answered, and whoever is answered twice, with the same event."""
    for number, count in enumerate(ROUNDS):
        wait_for_zero()
        began_s = time.monotonic()
        name = f"round-{number}"
        send(name, count)
        while len(told(name)) < count // 3:
            assert time.monotonic() < began_s + 300, NAMESPACE.state()
            time.sleep(1)
        NAMESPACE.kubectl("delete", "pod", "-l", PREDICTOR, "--grace-period=0", "--force", "--wait=false")
        NAMESPACE.kubectl("wait", f"pod/{name}", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=300s")
        while len(told(name)) < count:
            assert time.monotonic() < began_s + 360, NAMESPACE.state()
            time.sleep(1)
        print(f"round {number + 1}: {count} events answered in {time.monotonic() - began_s:.0f} s")
    answers = told("round-")
    assert_each_is_answered(answers, [f"round-{n}-{k}" for n, count in enumerate(ROUNDS) for k in range(1, count + 1)])
    repeats = [events for events in answers.values() if len(events) > 1]
    print(f"{sum(ROUNDS)} events, {sum(map(len, answers.values()))} answers, {len(repeats)} questions answered again")
