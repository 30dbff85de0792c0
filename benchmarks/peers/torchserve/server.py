"""TorchServe 0.12: the Java front and one worker; a folder as the archive, or the archive of the command line.

The queue holds more than the 64 connections (its default of 100 would do; the margin costs nothing). The delay is in
whole milliseconds. Raw bytes or JSON at `/predictions/NAME`, since its KServe envelopes answer only batches of one.
"""

import os
import shutil
import sys
from pathlib import Path

from assignment import MAX_BATCH_ROWS, MAX_WAIT_S, MODEL, PORT

SETTINGS = f"""
inference_address=http://127.0.0.1:{PORT}
management_address=http://127.0.0.1:{PORT + 1}
metrics_address=http://127.0.0.1:{PORT + 2}
grpc_inference_port={PORT + 3}
grpc_management_port={PORT + 4}
job_queue_size=1000
disable_token_authorization=true
enable_envvars_config=false
install_py_dep_per_model=false
"""

OF_FOLDER = f"""
models={{"{MODEL}": {{"1.0": {{"defaultVersion": true, "marName": "{MODEL}", "minWorkers": 1, "maxWorkers": 1, \
"batchSize": {MAX_BATCH_ROWS}, "maxBatchDelay": {round(MAX_WAIT_S * 1e3)}, "responseTimeout": 120}}}}}}
"""
"""An archive says it by itself."""

LOGS = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="ERROR"><Loggers><Root level="OFF"/></Loggers></Configuration>
"""


def _write_folder(archive: Path) -> None:
    (archive / "MAR-INF").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("handler.py"), archive)
    manifest = {"modelName": MODEL, "handler": "handler.py", "modelVersion": "1.0"}
    text = ", ".join(f'"{key}": "{value}"' for key, value in manifest.items())
    (archive / "MAR-INF" / "MANIFEST.json").write_text(f'{{"runtime": "python", "model": {{{text}}}}}')


def main() -> None:
    store = Path("store")
    if sys.argv[1:]:
        store = Path(sys.argv[1]).parent
        served = Path(sys.argv[1]).name
        Path("config.properties").write_text(SETTINGS)
    else:
        served = f"{MODEL}={MODEL}"
        _write_folder(store / MODEL)
        Path("config.properties").write_text(SETTINGS + OF_FOLDER)
    Path("log4j2.xml").write_text(LOGS)
    scripts = Path(sys.executable).parent
    os.execve(
        scripts / "torchserve",
        [
            "torchserve",
            "--foreground",
            "--start",
            "--ncs",
            f"--model-store={store}",
            f"--models={served}",
            "--ts-config=config.properties",
            "--log-config=log4j2.xml",
        ],
        # Its Java front starts `python` by that name.
        os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}"},
    )


if __name__ == "__main__":
    main()
