"""A class in a script of its own, without a server: `bare.py FOLDER CLASS`.

Loads it, gives it one row, prints the sum of its answer and the memory that it takes, and waits to be ended.
"""

import inspect
import sys
from pathlib import Path


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    sys.path.insert(0, str(folder))
    cls = getattr(__import__("model"), name)
    import torch

    model = cls()
    with torch.inference_mode():
        model.load(**({"folder": folder} if "folder" in inspect.signature(model.load).parameters else {}))
        if hasattr(cls, "inputs"):
            answer = model.predict(**{name: torch.ones(1, 16, dtype=torch.int64) for name in cls.inputs})
        else:
            answer = model.predict(torch.zeros(1, 784))
    first = answer if isinstance(answer, torch.Tensor) else next(iter(answer.values()))
    print(f"{first.sum().item():.5f} {resident_mib('self'):.1f}", flush=True)
    sys.stdin.read()


def resident_mib(process: int | str) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
