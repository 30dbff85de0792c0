"""A namespace of the cluster that $KUBECONFIG names, for a file of tests: kubectl in it, requests to its services, and what a
person would look at when something went wrong.
"""

import json
import os
import subprocess
import time
import urllib.request
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import pytest

IMAGE = os.environ.get("TORPOR_IMAGE", "localhost/torpor:dev")
"""What the Dockerfile makes, as the cluster knows it."""

RUNTIME_CLASS = os.environ.get("TORPOR_RUNTIME_CLASS", "")
"""That all pods of the tests are to have, such as gvisor; "" for the cluster's default."""

NEEDS_CLUSTER = [
    pytest.mark.cluster,
    pytest.mark.skipif(not os.environ.get("KUBECONFIG"), reason="no cluster: $KUBECONFIG is not set"),
]
NEEDS_INGRESS = [
    *NEEDS_CLUSTER,
    pytest.mark.skipif(not os.environ.get("INGRESS"), reason="no ingress: $INGRESS is not set"),
]

_VOLUME = """\
apiVersion: v1
kind: PersistentVolume
metadata: {{ name: {name} }}
spec:
  capacity: {{ storage: 1Gi }}
  accessModes: [ReadOnlyMany]
  storageClassName: ""
  hostPath: {{ path: {folder} }}
  claimRef: {{ namespace: {name}, name: models }}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{ name: models }}
spec:
  accessModes: [ReadOnlyMany]
  storageClassName: ""
  volumeName: {name}
  resources: {{ requests: {{ storage: 1Gi }} }}
"""

_SANDBOXED = """\
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {{ name: {name} }}
spec:
  failurePolicy: Fail
  reinvocationPolicy: Never
  matchConstraints:
    resourceRules: [{{ apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods] }}]
  matchConditions: [{{ name: mine, expression: request.namespace == "{name}" }}]
  mutations:
  - patchType: ApplyConfiguration
    applyConfiguration: {{ expression: 'Object{{spec: Object.spec{{runtimeClassName: "{runtime_class}"}}}}' }}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {{ name: {name} }}
spec: {{ policyName: {name} }}
"""


class Namespace:
    """Its name begins with `torpor-PURPOSE`; it is there while this is entered.

    kinds: that are looked at when something went wrong. timeout_s: of a kubectl.
    """

    def __init__(self, purpose: str, kinds: str = "inferenceservice,ksvc,pods", timeout_s: float = 150) -> None:
        self.name = f"torpor-{purpose}-{uuid.uuid4().hex[:8]}"
        self._kinds = kinds
        self._timeout_s = timeout_s

    def __enter__(self) -> "Namespace":
        self.kubectl("create", "namespace", self.name)
        if RUNTIME_CLASS:
            self.kubectl("apply", "-f", "-", given=_SANDBOXED.format(name=self.name, runtime_class=RUNTIME_CLASS))
            # Until the API server has read it: a pod that is not made shows which class it would have.
            dry = ("run", "one", "--image=none", "--dry-run=server", "-o", "jsonpath={.spec.runtimeClassName}")
            end_s = time.monotonic() + self._timeout_s
            while self.kubectl(*dry) != RUNTIME_CLASS:
                assert time.monotonic() < end_s, f"pods do not get the RuntimeClass {RUNTIME_CLASS}"
                time.sleep(0.5)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.delete("namespace", self.name)
        if RUNTIME_CLASS:
            self.delete("mutatingadmissionpolicybinding", self.name)
            self.delete("mutatingadmissionpolicy", self.name)

    def delete(self, kind: str, name: str) -> None:
        """Have an object go, of this namespace or of the cluster, whether there is one or not."""
        command = ["kubectl", "delete", kind, name, "--ignore-not-found", "--wait=false"]
        subprocess.run(command, check=True, capture_output=True)

    def kubectl(self, *arguments: str, given: str | None = None, timeout_s: float = 0) -> str:
        """Run kubectl here; its output. Fails the test with what it said. timeout_s: instead of the usual one."""
        command = ["kubectl", "-n", self.name, *arguments]
        limit_s = timeout_s or self._timeout_s
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=limit_s, check=False)
        if done.returncode:
            pytest.fail(f"{' '.join(command)}:\n{done.stdout}{done.stderr}\n{self.state()}")
        return done.stdout

    def claim(self, folder: Path) -> None:
        """Have a folder of the machine as the claim `models`, for pods to read; the volume goes by `delete`, by this name."""
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        self.kubectl("apply", "-f", "-", given=_VOLUME.format(name=self.name, folder=folder))

    def state(self) -> str:
        looks = (
            ("get", self._kinds, "-o", "wide"),
            ("get", "events", "--sort-by=.lastTimestamp"),
            ("logs", "-l", "serving.kserve.io/inferenceservice", "-c", "kserve-container", "--tail=50"),
        )
        done = [
            subprocess.run(["kubectl", "-n", self.name, *look], capture_output=True, text=True, check=False)
            for look in looks
        ]
        return "\n".join(look.stdout[-6000:] + look.stderr for look in done)

    def host(self, service: str) -> str:
        """The public host name of a Knative Service."""
        return urlsplit(self.kubectl("get", "ksvc", service, "-o", "jsonpath={.status.url}")).netloc


def post(host: str, path: str, body: dict[str, Any], timeout_s: float = 60) -> Any:
    """A request through the ingress, and its answer. Raises HTTPError, OSError."""
    headers = {"Host": host, "Content-Type": "application/json"}
    request = urllib.request.Request(f"{os.environ['INGRESS']}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        return json.load(response)
