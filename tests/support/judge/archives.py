"""The archives of the differential tests, each by the real archiver from `tests/torchserve/sources`."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from judge.bench import archiver, environments

SOURCES = Path(__file__).resolve().parents[2] / "torchserve" / "sources"


@dataclass(frozen=True)
class Archive:
    """What the archiver is given. Weights and other generated files are those that `weights.py` writes."""

    name: str
    handler: str = "echo.py"
    model_file: str = ""
    weights: str = ""
    extra: tuple[str, ...] = ()
    config: str = ""
    version: str = "1.0"
    form: str = "default"
    file: str = ""
    """Name in the store, without suffix, where it isn't the model's."""

    def make(self, store: Path, generated: Path) -> Path:
        def place(name: str) -> str:
            return str(SOURCES / name if (SOURCES / name).exists() else generated / name)

        # The archiver copies a handler by its path; stock names and `file:function` are not paths of ours.
        is_file = (SOURCES / self.handler).is_file()
        options = ["--handler", place(self.handler) if is_file else self.handler]
        if self.model_file:
            options += ["--model-file", place(self.model_file)]
        if self.weights:
            options += ["--serialized-file", place(self.weights)]
        if self.extra:
            options += ["--extra-files", ",".join(map(place, self.extra))]
        if self.config:
            options += ["--config-file", place(self.config)]
        made: Path = archiver.make(self.name, store, SOURCES, *options, version=self.version, form=self.form)
        return made.rename(made.with_name(f"{self.file}{''.join(made.suffixes)}")) if self.file else made


def generate(folder: Path) -> None:
    """Weights and labels and the image, seeded, by the peer's own packages."""
    python = environments.python_of("torchserve")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    subprocess.run([python, SOURCES / "weights.py", folder], check=True, env=environment)


ARCHIVES = {
    archive.file or archive.name: archive
    for archive in [
        Archive("eager", "eager_handler.py", "linear.py", "linear.pt"),
        Archive("scripted", "base_handler", weights="scripted.pt"),
        Archive("classifier", "image_classifier", weights="classifier.pt", extra=("index_to_name.json",)),
        Archive("unlabelled", "image_classifier", weights="classifier.pt"),
        Archive("detector", "object_detector", "detector.py", "detector.pt"),
        Archive("segmenter", "image_segmenter", "segmenter.py", "segmenter.pt"),
        Archive("text", "text_classifier", "bag.py", "bag.pt", extra=("source_vocab.pt",)),
        Archive("onnx", "onnx_handler.py", weights="linear.onnx"),
        Archive("compiled", "compiled_handler.py", "linear.py", "linear.pt", config="compiled.yaml"),
        Archive("explained", "explained.py", weights="scripted.pt"),
        Archive("echo"),
        Archive("context", "context_handler.py", extra=("neighbours/notes.txt",), config="batched.yaml"),
        Archive("modes", "modes.py"),
        Archive("dying", "modes.py", config="dying.yaml"),
        Archive("named", "named:answer"),
        Archive("both", "both.py"),
        Archive("imports", "imports.py"),
        Archive("neighbours", "neighbours.py", extra=("neighbours",)),
        Archive("stored", form="zip-store"),
        Archive("unpacked", form="no-archive"),
        Archive("packed", form="tgz"),
        Archive("batched", "batched.py", config="batched.yaml"),
        Archive("two", "echo.py", version="1.0", file="two-1"),
        Archive("two", "named:answer", version="2.0", file="two-2"),
        Archive("two_classes", "two_classes.py"),
        Archive("no_class", "no_class.py"),
        Archive("bad_import", "bad_import.py"),
        Archive("bad_initialize", "bad_initialize.py"),
        Archive("vllm", "vllm_handler"),
        Archive("no_weights", "base_handler"),
        Archive("weightless", "base_handler", model_file="linear.py"),
        Archive("v2_echo", "v2_echo.py"),
        Archive("instances", "instances_echo.py"),
    ]
}
"""By the file's name in the store, without its suffix."""
