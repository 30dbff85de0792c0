"""What serves the bundles on a node, as the agent sees it: restarted by a command, and well when it answers a request.

The command must return when the new version runs, such as `systemctl restart torpor`, or a script that waits for
`kubectl rollout status`; otherwise the old one may answer. The request goes to each model of the bundle by its own name: the
file smoke.json of the model's folder, a v1 or v2 request that must be answered with 200, else zeros after the model's
metadata, which may be refused with 4xx.
"""

import shlex
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from torpor.knative.rollout.smoke import Smoke, read_body

from .generations import Generation
from .k3s import K3s

SMOKE = "smoke.json"
RESTART_TIMEOUT_S = 600.0
PAUSE_S = 2.0
ANSWER_S = 30.0


class Service:
    """current: the folder that is served. command: '' for none. url: of the server, '' where nothing is asked. timeout_s: for
    the first answer, loading included.
    """

    def __init__(
        self,
        current: Path,
        command: str,
        url: str,
        timeout_s: float,
        k3s: K3s | None = None,
        interruptible: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._current = current
        self._command = shlex.split(command)
        self._url = url
        self._timeout_s = timeout_s
        self._k3s = k3s
        self._interruptible = interruptible

    def bring_up(self, generation: Generation) -> str:
        """Serve what is current; '' when it answers, else what was wrong."""
        if self._k3s:
            self._k3s.place(self._current, generation.files)
        return self._restart() or self._ask(generation)

    def _restart(self) -> str:
        if not self._command:
            return ""
        try:
            done = subprocess.run(
                self._command, stdin=subprocess.DEVNULL, capture_output=True, timeout=RESTART_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"the restart failed: {error}"
        if done.returncode == 0:
            return ""
        said = " ".join(done.stderr.decode("utf-8", "replace").split())[-200:]
        return f"the restart ended with {done.returncode}: {said}"

    def _ask(self, generation: Generation) -> str:
        end_s = time.monotonic() + self._timeout_s
        for model in generation.models if self._url else ():
            file = self._current / "model" / model / SMOKE
            try:
                body = read_body(file) if file.exists() else None
            except ValueError as error:
                return str(error)
            smoke = Smoke(body, model, timeout_s=ANSWER_S)
            while wrong := smoke.ask(self._url, model):
                if time.monotonic() > end_s:
                    return wrong
                with self._interruptible():
                    time.sleep(PAUSE_S)
        return ""
