"""BentoML 1.4: a service with an adaptive batching method, one worker.

BentoML joins batchable inputs along axis 0 itself and returns the bare list. It has no wait of its own: a dispatcher
learns the model's run time and refuses what would exceed `max_latency_ms`, so that bound is generous.
"""

import os
import sys
from pathlib import Path

from assignment import PORT

if __name__ == "__main__":
    os.environ |= {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(Path("bentoml").resolve())}
    bentoml = Path(sys.executable).with_name("bentoml")
    os.execv(
        bentoml,
        [
            "bentoml",
            "serve",
            "execution:Served",
            "--host",
            "127.0.0.1",
            "--port",
            str(PORT),
            "--quiet",
            "--working-dir",
            str(Path(__file__).parent),
        ],
    )
