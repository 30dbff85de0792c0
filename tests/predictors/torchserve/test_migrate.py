"""`torpor migrate`, on archives by the real torch-model-archiver: what is written, and that it answers as the archive does."""

import base64
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from archives import entry, write_mar, write_storage
from PIL import Image
from torpor.knative.manifests import read
from torpor.knative.rules import findings
from torpor.knative.schema import bundled
from torpor.predictors.errors import InvalidInput, ModelFailed
from torpor.predictors.migration.classes.handler import Handler, Inputs
from torpor.predictors.migration.classes.transformer import Images
from torpor.predictors.migration.code import Code
from torpor.predictors.migration.comparison import difference
from torpor.predictors.migration.folder import Migrated, compiled
from torpor.predictors.migration.service import service_name
from torpor.predictors.signature import Request
from torpor.predictors.torchserve.worker.context import Context
from torpor.predictors.torchserve.worker.metrics import Noted

ARCHIVER = Path(sys.executable).with_name("torch-model-archiver")
pytestmark = [
    pytest.mark.skipif(
        not ARCHIVER.exists() or importlib.util.find_spec("ts") is None,
        reason="needs torchserve and torch-model-archiver",
    ),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]
SOURCES = Path(__file__).parents[2] / "torchserve" / "sources"

FUNCTION = """
def handle(data, context):
    if data is None:
        return None
    return [{"upper": row["body"].decode().upper() if "body" in row else row["text"].upper()} for row in data]
"""
STATEFUL = """
import torch
from ts.torch_handler.base_handler import BaseHandler

class Scaled(BaseHandler):
    def initialize(self, context):
        super().initialize(context)
        self.scale = float(open("scale.txt").read()) * context.model_yaml_config["factor"]

    def preprocess(self, data):
        self.names = [row["name"] for row in data]
        return torch.tensor([row["x"] for row in data])

    def postprocess(self, data):
        return [{"name": name, "y": row} for name, row in zip(self.names, (data * self.scale).tolist())]
"""
COUNTING = """
class Counting:
    def initialize(self, context):
        self.asked = 0

    def handle(self, data, context):
        self.asked += len(data)
        return [self.asked] * len(data)
"""
REFUSING = """
from ts.utils.util import PredictionException

def handle(data, context):
    if data is None:
        return None
    if data[0] == "wrong":
        raise PredictionException("no such thing", 400)
    context.set_response_status(200, "", 0)
    return ["fine"] * len(data)
"""


def archived(folder: Path, name: str, handler: str, code: str = "", *options: str) -> Path:
    """An archive by the archiver, in `folder`; code: of the file that `handler` names."""
    sources = folder / f"{name}-sources"
    sources.mkdir(parents=True, exist_ok=True)
    if code:
        (sources / handler).write_text(code)
    command = [
        ARCHIVER,
        "--model-name",
        name,
        "--version",
        "1.0",
        "--handler",
        handler,
        "--export-path",
        folder,
        *options,
    ]
    environment = os.environ | {"TMPDIR": str(sources)}
    subprocess.run(command, cwd=sources, check=True, capture_output=True, env=environment)
    return folder / f"{name}.mar"


def weights(file: Path) -> str:
    """Of `linear.py` in the judge's sources."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(3, 2)
    torch.save({f"layer.{name}": tensor for name, tensor in linear.state_dict().items()}, file)
    return str(file)


def linear(folder: Path, name: str = "linear", *options: str) -> Path:
    """An eager network under the base handler."""
    eager = ("--model-file", str(SOURCES / "linear.py"), "--serialized-file", weights(folder / "linear.pt"))
    return archived(folder, name, "base_handler", "", *eager, *options)


def loaded(file: Path) -> Any:
    """A written module."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def migrate(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "torpor.predictors", "migrate", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def reported(out: Path) -> dict[str, Any]:
    """By model."""
    return {model["name"]: model for model in json.loads((out / "report.json").read_text())["models"]}


def sample(folder: Path, name: str, content: object) -> Path:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / name


def test_an_eager_network_needs_no_torchserve_any_more(tmp_path: Path) -> None:
    """Class, safetensors and settings; the folder is compared on rows that were made, and has no pickle and no `ts`."""
    config = sample(tmp_path, "model.yaml", "batchSize: 8\nmaxBatchDelay: 20\nresponseTimeout: 30\n")
    done = migrate(linear(tmp_path, "linear", "--config-file", str(config)), tmp_path / "out")
    folder = tmp_path / "out/linear"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"model.toml", "predictor.py", "linear.py", "linear.safetensors", "inferenceservice.yaml"}
    assert not names & {"linear.pt", "MAR-INF"}
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*")} == {0o644}
    assert "import ts" not in (folder / "predictor.py").read_text()
    assert "class Detector" not in (folder / "predictor.py").read_text()
    toml = (folder / "model.toml").read_text()
    assert "max_batch_size = 8  # batchSize" in toml
    assert "batch_timeout_micros = 20000  # maxBatchDelay" in toml
    assert "model_timeout_s = 30.0  # responseTimeout" in toml
    report = reported(tmp_path / "out")["linear"]
    assert (report["verdict"], report["needs_torchserve"]) == ("same on 2 samples", False)
    assert "linear: same on 2 samples" in done.stdout
    assert "| made, 2 rows | v1 | 200 | 200 | same |" in (tmp_path / "out/report.md").read_text()


def test_the_inference_service_is_valid_and_names_the_folder(tmp_path: Path) -> None:
    """A name that Kubernetes does not take for a service stays the model's."""
    migrate(linear(tmp_path, "Linear_1.2"), tmp_path / "out", "--storage-uri", "s3://bucket/models/")
    text = (tmp_path / "out/Linear_1.2/inferenceservice.yaml").read_text()
    (document,) = read(text, "inferenceservice.yaml")
    assert not [found for _, found in findings([document], bundled()) if found.severity == "error"]
    assert document.data["metadata"]["name"] == "linear-1-2"
    model = document.data["spec"]["predictor"]["model"]
    assert model["storageUri"] == "s3://bucket/models/Linear_1.2"
    assert model["args"] == ["--model-name=Linear_1.2"]


def test_torchscript_stays_what_it_is(tmp_path: Path) -> None:
    """The class loads it as it stands; integers fail in both."""
    torch.jit.trace(torch.nn.Linear(3, 2), torch.ones(1, 3)).save(tmp_path / "scripted.pt")
    path = archived(tmp_path, "scripted", "base_handler", "", "--serialized-file", str(tmp_path / "scripted.pt"))
    floats, integers = [
        sample(tmp_path, f"{name}.json", {"instances": rows})
        for name, rows in (("a", [[1.0, 2, 3]]), ("b", [[1, 2, 3]]))
    ]
    migrate(path, tmp_path / "out", "--sample", floats, "--sample", integers)
    assert (tmp_path / "out/scripted/scripted.pt").read_bytes() == (tmp_path / "scripted.pt").read_bytes()
    rows = reported(tmp_path / "out")["scripted"]["compared"]
    assert [(row["theirs"], row["ours"], row["difference"]) for row in rows] == [(200, 200, ""), (500, 500, "")]


def test_a_handler_that_keeps_state_runs_whole(tmp_path: Path) -> None:
    """With its files, its YAML, its relative opens; its network's weights are safetensors all the same."""
    scale, config = sample(tmp_path, "scale.txt", "2.5"), sample(tmp_path, "model.yaml", "factor: 2\n")
    eager = ("--model-file", str(SOURCES / "linear.py"), "--serialized-file", weights(tmp_path / "linear.pt"))
    more = ("--extra-files", str(scale), "--config-file", str(config))
    path = archived(tmp_path, "scaled", "scaled.py", STATEFUL, *eager, *more)
    rows = [{"name": "a", "x": [1.0, 2.0, 3.0]}, {"name": "b", "x": [0.5, 0.0, -1.0]}]
    migrate(path, tmp_path / "out", "--sample", sample(tmp_path, "rows.json", {"instances": rows}))
    report = reported(tmp_path / "out")["scaled"]
    assert report["verdict"] == "same on 1 sample"
    assert report["needs_torchserve"]
    assert (tmp_path / "out/scaled/linear.safetensors").exists()
    assert not (tmp_path / "out/scaled/linear.pt").exists()
    assert "EXTRAS=torchserve" in (tmp_path / "out/scaled/inferenceservice.yaml").read_text()


def test_a_function_gets_a_predictions_body_by_v1(tmp_path: Path) -> None:
    """Bytes as `{"b64": …}`, objects as they are; a handler that imports no `ts` needs none."""
    path = archived(tmp_path, "upper", "upper.py", FUNCTION)
    raw, rows = (
        sample(tmp_path, "body.bin", "gr\u00fc\u00df"),
        sample(tmp_path, "rows.json", {"instances": [{"text": "a"}] * 2}),
    )
    migrate(path, tmp_path / "out", "--sample", raw, "--sample", rows)
    report = reported(tmp_path / "out")["upper"]
    assert (report["verdict"], report["needs_torchserve"]) == ("same on 2 samples", False)
    assert [row["protocol"] for row in report["compared"]] == ["predictions", "v1"]


def test_inputs_of_v2_are_the_handlers_objects(tmp_path: Path) -> None:
    """With `--protocol v2`: an output by the name of each input, with the same data, whatever the handler returns."""
    path = archived(tmp_path, "echo", "v2_echo.py", (SOURCES / "v2_echo.py").read_text())

    def request(name: str, datatype: str, shape: list[int], *data: object) -> Path:
        asked = {"name": name, "datatype": datatype, "shape": shape, "data": data}
        return sample(tmp_path, f"{name}.json", {"inputs": [asked]})

    files = [
        request("x", "FP32", [2, 3], 1, 2, 3, 4, 5, 6),
        request("text", "BYTES", [1], "gr\u00fc\u00df"),
        request("objects", "INT64", [1], 1),
        request("nested", "INT64", [1], 1),
        request("strings", "INT64", [2], 1, 2),
    ]
    migrate(path, tmp_path / "out", "--protocol", "v2", *(part for file in files for part in ("--sample", file)))
    rows = reported(tmp_path / "out")["echo"]["compared"]
    assert [(row["ours"], row["difference"]) for row in rows] == [(200, "")] * 5
    assert rows[0]["notes"] == "datatype INT64 → FP64, shape [6] → [2, 3]"


def test_images_are_read_from_v2_too(tmp_path: Path) -> None:
    """The file's base64, which TorchServe has in BYTES, or the file itself; a label is its index without a file of them."""
    torch.jit.trace(Classifier(), torch.ones(1, 3, 8, 8)).save(tmp_path / "classifier.pt")
    path = archived(tmp_path, "images", "image_classifier", "", "--serialized-file", str(tmp_path / "classifier.pt"))
    arguments = [sys.executable, "-P", "-m", "torpor.predictors", "migrate", path, tmp_path / "out"]
    subprocess.run(arguments, check=False, capture_output=True)  # the archive's own side needs torchvision
    content = io.BytesIO()
    Image.effect_noise((300, 280), 60).convert("RGB").save(content, "PNG")
    element = np.array([content.getvalue(), base64.b64encode(content.getvalue())], object)
    chain = loaded(tmp_path / "out/images/transformer.py").Classifier()
    chain.load(tmp_path / "out/images", {"orientation": False})
    by_file, by_text = chain.preprocess(element)["image"]
    assert by_file.shape == (3, 224, 224)
    assert np.array_equal(by_file, by_text)
    (answer,) = chain.postprocess(np.array([[0.75, 0.25]]), np.array([[3, 1]]))
    assert json.loads(answer) == {"3": 0.75, "1": 0.25}


@pytest.mark.parametrize("name", ["model.toml", "archive.json"])
def test_an_archive_with_a_file_of_ours_stays_one(tmp_path: Path, name: str) -> None:
    """It would be written over, and the handler may read it."""
    path = archived(tmp_path, "own", "own.py", FUNCTION, "--extra-files", str(sample(tmp_path, name, "")))
    assert f"own: stays an archive: it has a file {name} of its own" in migrate(path, tmp_path / "out", status=1).stdout


def handled(results: Any, status: int = 200) -> Handler:
    """A whole handler that returns these, whatever it gets, and sets that status for the first row."""

    def handle(data: list[Any], context: Context) -> Any:
        context.set_response_status(status, "", 0)
        return results

    handler = Inputs()
    handler.context, handler.handle = Context("m", {}, {}, {}, Noted()), handle
    return handler


ASKED = Request({}, {}, "")


@pytest.mark.parametrize(
    ("results", "status", "error", "message"),
    [
        ([1], 200, ModelFailed, "the handler returned 1 items, must be 2"),
        (("a", "b"), 200, ModelFailed, "the handler returned a tuple, must be a list"),
        (["gone", "fine"], 410, InvalidInput, "gone"),
        ([b"down", "fine"], 500, ModelFailed, "down"),
    ],
)
def test_rows_of_a_handler_must_be_all_there(results: Any, status: int, error: type[Exception], message: str) -> None:
    """What it returns is held against what it got, and the statuses that it sets are errors of the same side."""
    with pytest.raises(error, match=message):
        Handler.predict(handled(results, status), np.array([b"1", b"2"], object), [ASKED, ASKED])


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([1, 2], "the handler returned 2 items for 1 inputs"),
        ([[1, 2, 3]], "output 'x' has 3 elements, must be as many for each of 2 rows"),
    ],
)
def test_rows_of_a_handler_by_v2_must_be_as_many_as_its_inputs(results: Any, message: str) -> None:
    """An output has rows here, where TorchServe's are flat."""
    with pytest.raises(ModelFailed, match=message):
        handled(results).predict(ASKED, x=torch.ones(2, 3))


@pytest.mark.parametrize(
    ("row", "message"), [(b"{", "input 'row' is not JSON"), (b'{"body": {"b64": "a"}}', "body.b64 is not base64")]
)
def test_rows_of_a_handler_that_cannot_be_read_are_the_callers_fault(row: bytes, message: str) -> None:
    """400, and the handler is not asked."""
    with pytest.raises(InvalidInput, match=message):
        Handler.predict(handled([1]), np.array([row], object), [ASKED])


def test_bytes_of_a_handler_are_texts_or_base64() -> None:
    """JSON has no others."""
    texts = Handler.predict(handled([b"a", b"\xff"]), np.array([b"1", b"2"], object), [ASKED, ASKED])
    assert [json.loads(text) for text in texts] == ["a", {"b64": "/w=="}]


@pytest.mark.parametrize("row", ['"no image"', "[[1, 2], [3]]", "null", '{"other": 1}', "[1.5]", '"="'])
def test_a_row_that_is_no_image_is_the_callers_fault(row: str) -> None:
    """400, and the row is named; TorchServe's handler fails."""
    images = Images()
    images.load(Path(), {})
    with pytest.raises(InvalidInput, match="input 'data': row 1"):
        images.preprocess(np.array([b"[[[1.0]]]", row.encode()], object))


@pytest.mark.parametrize(
    "said", [{"0": "a", "1": "b"}, {"0": ["n0", "a"], "1": ["n1", "b"]}, {"object_type_names": ["a", "b"]}]
)
def test_labels_have_torchserves_forms(tmp_path: Path, said: object) -> None:
    """Texts, lists whose last element counts, or one list of names."""
    images = Images()
    images.load(sample(tmp_path, "labels.json", said).parent, {"labels": "labels.json"})
    assert [images.label(index) for index in (0, 1)] == ["a", "b"]


def test_what_a_handler_refuses_is_refused(tmp_path: Path) -> None:
    """PredictionException of 400 is 400; what does not come along is said."""
    path = archived(tmp_path, "refusing", "refusing.py", REFUSING)
    wrong, fine = [sample(tmp_path, f"{text}.json", {"instances": [text]}) for text in ("wrong", "fine")]
    migrate(path, tmp_path / "out", "--sample", wrong, "--sample", fine)
    report = reported(tmp_path / "out")["refusing"]
    assert [(row["theirs"], row["ours"], row["notes"]) for row in report["compared"]] == [
        (400, 400, "both refuse"),
        (200, 200, ""),
    ]
    assert any("PredictionException" in text for text in report["not_carried"])
    assert any("statuses that the handler sets" in text for text in report["not_carried"])


def test_a_difference_is_said_and_the_status_is_1(tmp_path: Path) -> None:
    """Here a handler that counts, and a text of which two rows are one request's."""
    path = archived(tmp_path, "counting", "counting.py", COUNTING)
    one, same = sample(tmp_path, "one.json", {"instances": [1]}), sample(tmp_path, "v2.json", {"inputs": [
        {"name": "x", "shape": [1], "datatype": "INT64", "data": [1]}]})  # fmt: skip
    done = migrate(path, tmp_path / "out", "--sample", one, "--sample", same, status=1)
    assert "counting: differs" in done.stdout
    assert "DIFFERS: status" in done.stdout
    assert [bool(row["difference"]) for row in reported(tmp_path / "out")["counting"]["compared"]] == [False, True]


def test_weights_that_would_run_code_are_refused(tmp_path: Path) -> None:
    """In plain words, and nothing is written; --unpickle reads them."""
    state = {f"layer.{name}": tensor for name, tensor in torch.nn.Linear(3, 2).state_dict().items()}
    ran = tmp_path / "ran"
    torch.save(Opening(state, str(ran)), tmp_path / "linear.pt")
    eager = ("--model-file", str(SOURCES / "linear.py"), "--serialized-file", str(tmp_path / "linear.pt"))
    path = archived(tmp_path, "odd", "base_handler", "", *eager)
    done = migrate(path, tmp_path / "out", status=1)
    assert (
        "odd: stays an archive: linear.pt holds more than tensors, and reading it would run what it says" in done.stdout
    )
    assert "--unpickle" in done.stdout
    assert not (tmp_path / "out").exists()
    assert not [*tmp_path.glob(".out-*")]
    assert not ran.exists()
    migrate(path, tmp_path / "out", "--unpickle")
    assert ran.exists()
    assert reported(tmp_path / "out")["odd"]["verdict"] == "same on 2 samples"


class Opening(dict):  # type: ignore[type-arg]
    """A state_dict whose pickle makes a file when it is read."""

    def __init__(self, state: dict[str, torch.Tensor], file: str) -> None:
        super().__init__(state)
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return eval, (f"(open({self.file!r}, 'w').close(), state)[1]", {"state": dict(self)})


def test_a_storage_folder_is_migrated_model_by_model(tmp_path: Path) -> None:
    """By its snapshot's names; what can't be carried over stays an archive, and the others come."""
    store = tmp_path / "storage/model-store"
    store.mkdir(parents=True)
    linear(tmp_path, "a").rename(store / "a.mar")
    archived(tmp_path, "v", "vllm_handler").rename(store / "v.mar")
    own = archived(tmp_path, "own", "own.py", FUNCTION, "--extra-files", str(sample(tmp_path, "model.toml", "")))
    own.rename(store / "own.mar")
    snapshot = {"digits": {"1.0": entry("a.mar")}, "llm": {"1.0": entry("v.mar")}, "own": {"1.0": entry("own.mar")}}
    wrong = archived(
        tmp_path, "wrong", "wrong.py", FUNCTION, "--config-file", str(sample(tmp_path, "model.yaml", "batchSize: 0"))
    )
    wrong.rename(store / "wrong.mar")
    write_storage(tmp_path / "storage", snapshot | {"wrong": {"1.0": entry("wrong.mar")}})
    done = migrate(tmp_path / "storage", tmp_path / "out", status=1)
    report = reported(tmp_path / "out")
    assert {name: model["verdict"] for name, model in report.items()} == {
        "digits": "same on 2 samples",
        "llm": "stays an archive",
        "own": "stays an archive",
        "wrong": "stays an archive",
    }
    assert "handler 'vllm_handler' is no file of the archive" in done.stdout
    assert "wrong.mar: model.yaml: batchSize = 0, must be an integer in [1, " in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["digits", "report.json", "report.md"]


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    """Status 2, before anything is read; an empty one is taken."""
    (tmp_path / "out").mkdir()
    sample(tmp_path / "out", "mine", "")
    done = migrate(tmp_path / "no.mar", tmp_path / "out", status=2)
    assert "must be an empty folder or none" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no.mar", "out"), "no.mar: no such file or folder"),
        ((".", "out"), "no archive, and none in it"),
        (("a.mar", "out", "--sample", "no.json"), "--sample no.json: no such file"),
        (("a.mar", "out", "--tolerance", "2"), "'2', must be in [0, 1]"),
        (("dots.mar", "out"), "model '..': no folder of OUT can be called so"),
        (("storage", "out"), "model '../out': no folder of OUT can be called so"),
    ],
)
def test_wrong_arguments_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    """Status 2, and no folder."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path if arguments[0] == "dots.mar" else tmp_path / "storage/model-store"
    write_storage(tmp_path / "storage", {"../out": {"1.0": entry("dots.mar")}})
    write_mar(place / "dots.mar", {"handler.py": FUNCTION}, {"model": {"modelName": "..", "handler": "handler.py"}})
    assert message in migrate(*arguments, status=2).stderr
    assert not (tmp_path / "out").exists()


needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="needs torchvision, for the archive's own side"
)


@needs_torchvision
@pytest.mark.parametrize("handler", ["image_classifier", "object_detector", "image_segmenter"])
def test_images_go_through_a_transformer_without_torchvision(tmp_path: Path, handler: str) -> None:
    """Labels, boxes and pixels as from TorchServe's handlers, from rows that were made and from an image's file."""
    networks = {"image_classifier": Classifier, "object_detector": None, "image_segmenter": None}
    labels = sample(tmp_path, "index_to_name.json", {str(index): ["n", f"class {index}"] for index in range(6)})
    options = ["--extra-files", str(labels)]
    if networks[handler] is not None:
        torch.manual_seed(0)
        torch.jit.trace(Classifier(), torch.ones(1, 3, 8, 8)).save(tmp_path / "classifier.pt")
        options += ["--serialized-file", str(tmp_path / "classifier.pt")]
    else:
        file = "detector" if handler == "object_detector" else "segmenter"
        state = {} if file == "detector" else {"layer.weight": torch.rand(3, 3, 1, 1), "layer.bias": torch.zeros(3)}
        torch.save(state, tmp_path / f"{file}.pt")
        options += ["--model-file", str(SOURCES / f"{file}.py"), "--serialized-file", str(tmp_path / f"{file}.pt")]
    path = archived(tmp_path, "images", handler, "", *options)
    migrate(path, tmp_path / "out")
    assert reported(tmp_path / "out")["images"]["verdict"] == "same on 2 samples"
    Image.effect_noise((90, 70), 60).convert("RGB").resize((300, 280)).save(tmp_path / "a.png")
    migrate(path, tmp_path / "again", "--sample", tmp_path / "a.png")
    assert reported(tmp_path / "again")["images"]["verdict"] == "same on 1 sample"


class Classifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(48, 6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1))


@pytest.mark.parametrize(
    ("theirs", "ours", "found"),
    [
        ({"a": [1, 2.0]}, {"a": [1.0, 2.00001]}, ""),
        ({"a": [1, 2.0]}, {"a": [1.0, 2.1]}, "a[1]: 2.0, 2.1"),
        ([0.0], [0.00002], "[0]: 0.0, 2e-05"),
        ({"a": 1}, {"b": 1}, "body: keys ['a'], ['b']"),
        ([1], [1, 2], "body: 1 elements, 2"),
        ([True], [1], "[0]: True, 1"),
        (["a"], ["b"], "[0]: 'a', 'b'"),
        ([1], ["1"], "[0]: 1, '1'"),
        ([float("nan")], [float("nan")], ""),
        (None, 0, "body: None, 0"),
    ],
)
def test_answers_differ_where_their_values_do(theirs: object, ours: object, found: str) -> None:
    """Numbers within the tolerance, everything else exactly; the place is named."""
    assert difference(theirs, ours, 1e-4) == found


@pytest.mark.parametrize(
    ("code", "itself"),
    [
        ("from ts.torch_handler.base_handler import BaseHandler", False),
        ("import ts\nimport torch\ntorch.load('x')", True),
        ("import ts\nfrom torch import load\nload('x')", True),
        ("import ts\nclass A:\n    def _load_pickled_model(self): ...", True),
        ("import torch", True),
        ("def broken(:", True),
    ],
)
def test_who_reads_the_weights_is_seen_in_the_code(tmp_path: Path, code: str, itself: bool) -> None:
    """Only TorchServe's base handler can be given others."""
    (tmp_path / "a.py").write_text(code)
    assert Code(tmp_path).reads_weights_itself == itself


@pytest.mark.parametrize(("name", "service"), [("mnist", "mnist"), ("A_b.C", "a-b-c"), ("1st", "m-1st"), ("é", "m")])
def test_services_have_names_that_kubernetes_takes(name: str, service: str) -> None:
    """Lower case, digits and dashes, a letter first."""
    assert service_name(name) == service


@pytest.mark.parametrize(
    ("said", "settings", "is_left"),
    [
        (None, [], False),
        ("inductor", ['compile = "default"'], False),
        ({"backend": "inductor", "mode": "reduce-overhead"}, ['compile = "reduce-overhead"'], False),
        ({"compile": {"enable": True}}, ['compile = "default"'], False),
        ({"compile": {"enable": False}}, [], False),
        ({"compile": {"enable": True, "backend": "openvino"}}, [], True),
        ({"export": {"aot_compile": True}}, [], True),
    ],
)
def test_pt2_is_a_setting(tmp_path: Path, said: object, settings: list[str], is_left: bool) -> None:
    """Where torpor compiles as it says; else the report has it."""
    migrated = Migrated("m", tmp_path, "base_handler", "tensors", tmp_path)
    assert compiled(migrated, {"pt2": said}) == settings
    assert bool(migrated.left) == is_left
