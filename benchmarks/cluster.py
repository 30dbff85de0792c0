"""A cluster with Knative, for the programs that measure on one: a namespace, the services in it, and a service's pods.

They need $KUBECONFIG, $INGRESS (the address of Knative's ingress, http://HOST:PORT) and kubectl.
"""

import argparse
import json
import math
import os
import subprocess
import threading
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

from torpor.knative.autoscaling import PREFIX

IMAGE = os.environ.get("TORPOR_IMAGE", "localhost/torpor:dev")
"""What the Dockerfile makes, as the cluster knows it."""

LIMIT_S = 90.0
"""Of what the cluster is waited for."""

REQUESTS = {"cpu": "100m", "memory": "512Mi"}
"""So little that several pods find room on two cores: one without would wait until another's pod has drained."""

LIMITS = {"cpu": "2", "memory": "1Gi"}
SLEEPY = {PREFIX + "window": "6s", PREFIX + "scale-to-zero-pod-retention-period": "0s"}
"""The shortest that Knative takes."""


def check_environment(parser: argparse.ArgumentParser) -> None:
    """Ends the program if something is not set."""
    for name in ("KUBECONFIG", "INGRESS"):
        if not os.environ.get(name):
            parser.error(f"${name} is not set: a cluster with Knative is needed")


def ingress() -> tuple[str, int]:
    """Host and port."""
    address = urlsplit(os.environ["INGRESS"])
    return address.hostname or "", address.port or 80


def container(image: str, **more: Any) -> dict[str, Any]:
    """A predictor's; more: what else it has, or has instead."""
    return {
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "ports": [{"name": "http1", "containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": 8080}},
        "resources": {"requests": REQUESTS, "limits": LIMITS},
        **more,
    }


def knative_service(name: str, annotations: dict[str, str], spec: dict[str, Any]) -> dict[str, Any]:
    """annotations, spec: of the revision."""
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"template": {"metadata": {"annotations": annotations}, "spec": spec}},
    }


class Kubectl:
    """A namespace that is there while this is entered. Called, it runs kubectl there, and ends the program if that fails."""

    def __init__(self, purpose: str) -> None:
        self.namespace = f"torpor-{purpose}-{uuid.uuid4().hex[:8]}"

    def __enter__(self) -> "Kubectl":
        self("create", "namespace", self.namespace)
        return self

    def __exit__(self, *_: object) -> None:
        self("delete", "namespace", self.namespace, "--wait=false")

    def __call__(self, *arguments: str, given: str | None = None) -> str:
        command = ["kubectl", "-n", self.namespace, *arguments]
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def apply(self, document: dict[str, Any]) -> None:
        self("apply", "-f", "-", given=json.dumps(document))

    def host(self, service: str) -> str:
        """The public host name of a Knative Service, once that is ready."""
        self("wait", "--for=condition=Ready", f"ksvc/{service}", f"--timeout={LIMIT_S:g}s")
        return urlsplit(self("get", "ksvc", service, "-o", "jsonpath={.status.url}")).netloc


class Pods:
    """A service's pods, as the API server tells of them: for each when it was created, ready, told to go, and gone."""

    _FIELDS = (
        "{.type} {.object.metadata.name} {.object.metadata.deletionTimestamp}"
        ' {.object.status.conditions[?(@.type=="Ready")].status}{"\\n"}'
    )

    def __init__(self, kubectl: Kubectl, service: str) -> None:
        self.seen: dict[str, list[float]] = {}
        self.wakes: list[float] = []
        """When a pod was created while none was there that stays."""

        command = ["kubectl", "-n", kubectl.namespace, "get", "pods", "-l", f"serving.knative.dev/service={service}"]
        command += ["--watch", "--output-watch-events", "-o", f"jsonpath={self._FIELDS}"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            now = time.monotonic()
            kind, name, *words = line.split()
            if name not in self.seen:
                if not any(math.isinf(pod[2]) for pod in self.seen.values()):
                    self.wakes.append(now)
                self.seen[name] = [now, math.inf, math.inf, math.inf]
            pod = self.seen[name]
            if "True" in words:
                pod[1] = min(pod[1], now)
            if len(words) > 1 or (words and words[0][0].isdigit()):
                pod[2] = min(pod[2], now)
            if kind == "DELETED":
                pod[2], pod[3] = min(pod[2], now), now

    def wait_for_none(self) -> None:
        limit_s = time.monotonic() + LIMIT_S
        while any(math.isinf(pod[3]) for pod in [*self.seen.values()]):
            if time.monotonic() > limit_s:
                raise SystemExit(f"there are still pods after {LIMIT_S:g} s: {self.seen}")
            time.sleep(0.2)

    def forget(self) -> None:
        self.seen.clear()
        self.wakes.clear()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._thread.join()
