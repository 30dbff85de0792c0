"""`torpor up` as a process, with services of `subject.py`."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT_S = 30
SUBJECT = Path(__file__).parents[1] / "knative" / "up" / "subject.py"


class Up:
    """A `torpor up` over one YAML text, on free ports."""

    def __init__(self, folder: Path, yaml: str, *options: str, **environment: str) -> None:
        file = folder / "up.yaml"
        file.write_text(yaml)
        torpor = Path(sys.executable).with_name("torpor")
        command = [torpor, "up", file, "--port", "0", "--state", folder / "state", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment)
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._lines.append("(end)\n")
            self._changed.notify_all()

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def wait_for(self, pattern: str, count: int = 1) -> re.Match[str]:
        """The count-th line with the pattern, when it has come."""

        def found() -> list[re.Match[str]]:
            return [*re.finditer(pattern, self.log)]

        with self._changed:
            assert self._changed.wait_for(lambda: len(found()) >= count or "(end)" in self.log, TIMEOUT_S), self.log
            assert len(found()) >= count, self.log
            return found()[count - 1]

    def port(self, name: str = "subject") -> int:
        return int(self.wait_for(rf"{name} is at http://127\.0\.0\.1:(\d+)/")[1])

    def page(self) -> int:
        return int(self.wait_for(r"the page is at http://127\.0\.0\.1:(\d+)/")[1])

    def state(self, name: str = "subject") -> dict[str, Any]:
        """The component, as the page has it."""
        _, body = ask(self.page(), "/state.json")
        return next(one for one in json.loads(body)["components"] if one["name"] == name)

    def wait_until(self, is_so: Callable[[dict[str, Any]], bool], name: str = "subject") -> dict[str, Any]:
        """Ask for the state until it is so."""
        for _ in range(100_000):
            if is_so(state := self.state(name)):
                return state
            assert self.process.poll() is None, self.log
        raise AssertionError(state)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def ended(self) -> int:
        """Its exit status, when it has ended."""
        status = self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        return status


def ask(port: int, path: str = "/", method: str = "GET", body: Any = None, **headers: str) -> tuple[int, bytes]:
    """Status and body of an answer over a connection of its own."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.read()


def service(
    arguments: str = "",
    annotations: str = 'autoscaling.knative.dev/initial-scale: "0"',
    spec: str = "",
    container: str = "",
    name: str = "subject",
) -> str:
    """A Knative Service of `subject.py`, asleep at first unless the annotations say otherwise."""
    return f"""\
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {{ name: {name} }}
spec:
  template:
    metadata: {{ annotations: {{ {annotations} }} }}
    spec:
      {spec}
      containers:
        - image: example.org/subject
          command: [{sys.executable}, {SUBJECT}]
          args: [{arguments}]
          {container}
"""  # fmt: skip


class Asking:
    """A request in a thread of its own."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._answer: tuple[int, bytes] | None = None
        self._error: Exception | None = None

        def run() -> None:
            try:
                self._answer = ask(*arguments, **more)
            except (OSError, http.client.HTTPException) as error:
                self._error = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def answer(self) -> tuple[int, bytes]:
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer
