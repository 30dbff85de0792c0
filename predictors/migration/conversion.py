"""`python -m torpor.predictors.migration.conversion`: an eager model's pickled weights as safetensors, in a process of its own.

It imports the archive's model file, whose name may be anything, and so is nobody's module but here. In comes one JSON object
on standard input, out goes one on standard output: `{"class", "weights", "tensors"}`, or `{"refused"}` with the reason.
"""

import contextlib
import importlib
import inspect
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_SIDES = (224, 32, 28, 64)
"""Of images that a network may take, where its first layer is a convolution."""


class Refused(Exception):
    """It can't be carried over; the message says why."""


def convert(folder: Path, model_file: str, weights: str, unpickle: bool) -> dict[str, Any]:
    """Write NAME.safetensors beside the pickle and remove that. weights: "" for none. Raises Refused.

    Gives `class`, the model file's only one, `weights`, and how many `tensors`: 0 where it holds others too, and stays.
    """
    name, cls = _model_class(folder, model_file)
    if not weights:
        return {"class": name, "weights": "", "tensors": 0}
    state = _state(folder / weights, unpickle)
    if not all(isinstance(value, torch.Tensor) for value in state.values()) or not state:
        if unpickle:
            raise Refused(f"{weights} holds more than tensors, which safetensors cannot")
        cls().load_state_dict(state)
        return {"class": name, "weights": weights, "tensors": 0}
    cls().load_state_dict(state)  # else the archive doesn't load either, and says why
    # Tensors that share memory are written one by one: the class shares them again.
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    file = (folder / weights).with_suffix(".safetensors")
    if file.exists():
        raise Refused(f"{file.name} is in the archive already, beside {weights}")
    save_file(plain, file)
    (folder / weights).unlink()
    return {"class": name, "weights": str(file.relative_to(folder)), "tensors": len(plain)}


def shape_of(folder: Path, network: dict[str, str]) -> list[Any] | None:
    """A row that the network takes, as nested lists; None if none of the guesses is one. network: as `Network` reads it."""
    model = _network(folder, network)
    first = next(iter(model.state_dict().values()), None)
    if first is None:
        return None
    for shape in _guesses(first):
        row = torch.linspace(-1, 1, max(1, torch.Size(shape).numel())).reshape(shape).round(decimals=4)
        with contextlib.suppress(Exception), torch.inference_mode():
            model(torch.stack([row, -row]))
            return row.tolist()
    return None


def words_of(vocabulary: Path) -> list[str]:
    """Some that the stock text classifier has numbers for. Raises Refused."""
    known = _state(vocabulary, False)
    return [word for word in known if isinstance(word, str) and word.isascii() and word.isalpha() and word.islower()][
        :3
    ]


def _state(file: Path, unpickle: bool) -> dict[str, Any]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=not unpickle)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0].removesuffix(".")
        raise Refused(
            f"{file.name} holds more than tensors, and reading it would run what it says ({reason[:200]}): --unpickle, if you "
            "trust who made it"
        ) from None
    if isinstance(state, torch.nn.Module):
        raise Refused(
            f"{file.name} holds a whole module, must hold its state_dict: TorchServe's base handler takes no other"
        )
    if not isinstance(state, dict):
        raise Refused(f"{file.name} holds a {type(state).__name__}, must hold a state_dict")
    return state


def _model_class(folder: Path, model_file: str) -> tuple[str, Any]:
    module = importlib.import_module(Path(model_file).name.split(".")[0])
    classes = [cls for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__]
    if len(classes) != 1:
        names = ", ".join(cls.__name__ for cls in classes) or "none"
        raise Refused(f"{model_file} must have one class, as TorchServe's base handler wants it; it has {names}")
    return f"{module.__name__}:{classes[0].__name__}", classes[0]


def _network(folder: Path, network: dict[str, str]) -> torch.nn.Module:
    from torpor.predictors.migration.classes.predictor import Network

    made = Network()
    made.load(folder, torch.device("cpu"), network)
    return made.network  # type: ignore[no-any-return]


def _guesses(first: torch.Tensor) -> Iterator[tuple[int, ...]]:
    """Rows for a linear layer's weight [out, in], and for those of convolutions [out, in, size, …]."""
    if first.ndim == 2:
        yield (first.shape[1],)
    if first.ndim == 3:
        yield (first.shape[1], 64)
    if first.ndim == 4:
        yield from ((first.shape[1], side, side) for side in _SIDES)


def main() -> None:
    asked = json.load(sys.stdin)
    folder = Path(asked["folder"])
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    answer: dict[str, Any]
    try:
        # What the archive's code prints is no answer.
        with contextlib.redirect_stdout(sys.stderr), contextlib.chdir(folder):
            if "network" in asked:
                answer = {"row": shape_of(folder, asked["network"])}
            elif "vocabulary" in asked:
                answer = {"words": words_of(folder / asked["vocabulary"])}
            else:
                answer = convert(folder, asked["model_file"], asked["weights"], asked["unpickle"])
    except Refused as error:
        answer = {"refused": str(error)}
    except Exception as error:
        answer = {"refused": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
