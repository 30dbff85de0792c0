"""Triton 2.51 from the wheel `nvidia-pytriton`, without Docker: the Python backend with dynamic batching.

The wheel's server expects the Python backend and the stub for this Python in one folder, the interpreter's own
libpython first on the library path, and this environment's packages on PYTHONPATH, which `execution.py` reads.

One instance (one process for the model), the same batch bound and wait as everyone. Ragged batches let sentences of
different lengths share one batch; the model pads them. Two HTTP threads: on two
busy cores they gave 5 400 and 5 800/s, the default of 8 gave 3 500 and 4 600, four gave 3 600 and 4 100.
"""

import os
import shutil
import sysconfig
from pathlib import Path

import pytriton

from assignment import MAX_BATCH_ROWS, MAX_WAIT_S, MODEL, PORT

INPUTS = {
    "mlp": [("input", "TYPE_FP32", 784)],
    "minilm": [("input_ids", "TYPE_INT64", -1), ("attention_mask", "TYPE_INT64", -1)],
}
OUTPUT = {"mlp": ("output", 10), "minilm": ("embedding", 384)}


def configuration() -> str:
    ragged = "allow_ragged_batch: true" if MODEL == "minilm" else ""
    inputs = ", ".join(
        f'{{ name: "{name}" data_type: {kind} dims: [ {size} ] {ragged} }}' for name, kind, size in INPUTS[MODEL]
    )
    name, size = OUTPUT[MODEL]
    return f"""
        backend: "python"
        max_batch_size: {MAX_BATCH_ROWS}
        input [ {inputs} ]
        output [ {{ name: "{name}" data_type: TYPE_FP32 dims: [ {size} ] }} ]
        dynamic_batching {{ max_queue_delay_microseconds: {round(MAX_WAIT_S * 1e6)} }}
        instance_group [ {{ kind: KIND_CPU count: 1 }} ]
    """


def main() -> None:
    packages = Path(pytriton.__file__).parents[1]
    triton = packages / "pytriton" / "tritonserver"
    backends, repository = Path("backends"), Path("repository")
    shutil.copytree(triton / "backends" / "python", backends / "python")
    stub = f"python_backend_stubs/{sysconfig.get_python_version()}/triton_python_backend_stub"
    shutil.copy(triton / stub, backends / "python")
    (repository / MODEL / "1").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("execution.py"), repository / MODEL / "1" / "model.py")
    (repository / MODEL / "config.pbtxt").write_text(configuration())
    libraries = [sysconfig.get_config_var("LIBDIR"), str(packages / "nvidia_pytriton.libs")]
    search = [str(packages), os.environ["PYTHONPATH"]]
    os.execve(
        triton / "bin" / "tritonserver",
        [
            "tritonserver",
            f"--model-repository={repository.resolve()}",
            f"--backend-directory={backends.resolve()}",
            "--model-control-mode=explicit",
            f"--load-model={MODEL}",
            "--allow-metrics=false",
            "--log-info=false",
            "--log-warning=false",
            f"--http-port={PORT}",
            "--http-thread-count=2",
            f"--grpc-port={PORT + 1}",
        ],
        os.environ | {"LD_LIBRARY_PATH": ":".join(libraries), "PYTHONPATH": ":".join(search)},
    )


if __name__ == "__main__":
    main()
