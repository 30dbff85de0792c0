"""`python -m torpor.predictors.weights FOLDER`: the bytes of a model's parameters and buffers, for who sizes its memory."""

import os
import sys
from pathlib import Path

from .catalog import ModelFolder, Outside
from .runtime.executor import Executor
from .runtime.tuning import modules_of


def weights_bytes(folder: Path) -> int:
    """Loads the newest version; 0 for a class without modules. Raises SettingError, UserClassError, and what `load` does."""
    model = ModelFolder(folder.name, folder.resolve(), Outside({}, os.environ))
    executor = model.assemble(model.versions()[0]).executors[0]  # type: ignore[union-attr]
    assert isinstance(executor, Executor)
    executor.load()
    if "torch" not in sys.modules:
        return 0
    tensors = {
        tensor.data_ptr(): tensor.nbytes
        for module in modules_of(executor.instance)
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(tensors.values())


if __name__ == "__main__":
    print(weights_bytes(Path(sys.argv[1])))
