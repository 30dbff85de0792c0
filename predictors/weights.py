"""`python -m torpor.predictors.weights FOLDER`: the bytes of a model's parameters and buffers, for who sizes its memory."""

import os
import sys
from pathlib import Path

from .catalog import Assembled, ModelFolder, Outside
from .runtime.executor import Executor
from .runtime.tuning import modules_of
from .settings import SettingError


def weights_bytes(folder: Path) -> int:
    """Loads the newest version; 0 for a class without modules. Raises SettingError, UserClassError, and what `load` does."""
    model = ModelFolder(folder.name, folder.resolve(), Outside({}, os.environ))
    assembled = model.assemble(model.versions()[0])
    if not isinstance(assembled, Assembled):
        raise SettingError(f"{folder} is a transformer, must be a predictor")
    executor = assembled.executors[0]
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
