"""`torpor render`: from an InferenceService or a model's folder to a folder that `kubectl apply -k` takes."""

import argparse
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .render import Model, Wanted

IMAGE = "localhost/torpor:dev"

_EXAMPLE = """\
examples:

  torpor render examples/minilm out && kubectl apply -k out
  torpor render examples/mlp out --storage-uri pvc://models/mlp
  torpor render --runtime | kubectl apply -f -
"""


def add_command(commands: Any) -> None:
    """Add `render` to the sub-commands of `torpor`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "render",
        help="make the YAML of a service on a cluster",
        description="Completes an InferenceService (probe, resources, restricted Pod Security, scaling) and writes it to a "
        "folder with NetworkPolicy, PodDisruptionBudget, in Standard mode an HPA, and kustomization.yaml. What the file says "
        "stays as it is, its comments too; what is rendered has passed `torpor validate`.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", nargs="?", type=Path, metavar="FILE|FOLDER",
                        help="a YAML file with an InferenceService, or a model's folder")  # fmt: skip
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT", help="the folder to write")
    parser.add_argument("--force", action="store_true", help="write into a folder that has files")
    parser.add_argument("--image", default=IMAGE, help=f"of a new service, or of the runtime (default {IMAGE})")
    parser.add_argument("--storage-uri", default="", metavar="URI", help="where KServe fetches the model's folder from")
    parser.add_argument("--path", default="", metavar="PATH", help="or where the image has it")
    parser.add_argument("--mode", choices=("Knative", "Standard"), default="",
                        help="KServe's deployment mode (default: the file's, else Knative)")  # fmt: skip
    parser.add_argument(
        "--knative-service", action="store_true", help="a Knative Service, for a cluster without KServe"
    )
    parser.add_argument("--namespace", default="", help="written into kustomization.yaml")
    parser.add_argument("--trigger", default="", metavar="TYPE", help="a Trigger that brings events of this type")
    parser.add_argument("--broker", default="default", help="of the Trigger (default default)")
    parser.add_argument(
        "--dead-letter", default="", metavar="URL", help="of the Trigger: where events go that fail for good"
    )
    parser.add_argument("--ingress-namespace", action="append", default=[], metavar="NAME",
                        help="whose pods may come in, repeatable (default kourier-system, istio-system)")  # fmt: skip
    parser.add_argument("--runtime", action="store_true", help="print the ClusterServingRuntime torpor, and end")
    parser.add_argument("--no-auto-select", action="store_true",
                        help="of the runtime: only for services that name it, `runtime: torpor`")  # fmt: skip
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace, began_s: float) -> int:
    from .render import RenderError, Wanted

    if options.runtime:
        sys.stdout.write(runtime(options.image, not options.no_auto_select))
        return 0
    if options.source is None or options.out is None:
        print("torpor: render: FILE|FOLDER and OUT must be given", file=sys.stderr)
        return 2
    namespaces = tuple(options.ingress_namespace) or Wanted.ingress_namespaces
    wanted = Wanted(
        options.mode, options.knative_service, options.namespace,
        options.trigger, options.broker, options.dead_letter, namespaces,
    )  # fmt: skip
    try:
        if not options.source.exists():
            raise RenderError(f"{options.source}: no such file or folder")
        if options.out.exists() and not options.out.is_dir():
            raise RenderError(f"{options.out}: is a file, must be a folder")
        if options.out.is_dir() and any(options.out.iterdir()) and not options.force:
            raise RenderError(f"{options.out}: has files, must be empty or --force given")
        text, model = _source(options)
        files = _files(text, str(options.source), model, wanted)
    except (OSError, ValueError) as error:
        print(f"torpor: render: {error}", file=sys.stderr)
        return 2
    if not _valid(files):
        print("torpor: render: nothing is written", file=sys.stderr)
        return 1
    written: list[str] = []
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (options.out / name).write_text(content)
            written.append(name)
    except OSError as error:
        left = ", ".join(written) or "nothing"
        print(f"torpor: render: {options.out}: {error}; written: {left}, of {', '.join(files)}", file=sys.stderr)
        return 2
    print(f"{options.out}: {', '.join(files)}")
    return 0


def runtime(image: str, auto_select: bool) -> str:
    """The ClusterServingRuntime `torpor`."""
    text = resources.files(__package__).joinpath("runtime/clusterservingruntime.yaml").read_text()
    text = text.replace(f"image: {IMAGE}", f"image: {image}")
    return text if auto_select else text.replace("autoSelect: true", "autoSelect: false")


def _source(options: argparse.Namespace) -> "tuple[str, Model | None]":
    """The text with the InferenceService, and the model if there is a folder of one. Raises OSError, ValueError."""
    from .render import RenderError, new_service, read_model

    if not options.source.is_dir():
        return options.source.read_text(), None
    model = read_model(options.source)
    file = options.source / "inferenceservice.yaml"
    if file.is_file() and not options.storage_uri and not options.path:
        return file.read_text(), model
    if bool(options.storage_uri) == bool(options.path):
        raise RenderError(f"{options.source}: --storage-uri or --path must be given, for KServe or in the image")
    return new_service(model, options.storage_uri, options.path, options.image), model


def _files(text: str, source: str, model: "Model | None", wanted: "Wanted") -> dict[str, str]:
    """Contents by name. Raises ValueError."""
    from .manifests import read
    from .render import RenderError, beside, complete, components, dump, kustomization, load, plain_service

    for document in read(text, source):
        if document.faults:
            raise RenderError(f"{source}:{document.faults[0].line}: {document.faults[0].message}")
    documents = load(text)
    services = [document for document in documents if document.get("kind") == "InferenceService"]
    if len(services) != 1:
        raise RenderError(f"{source}: {len(services)} InferenceServices, must be one")
    (service,) = services
    if not isinstance(service.get("spec"), dict) or not isinstance(service.get("metadata"), dict):
        raise RenderError(f"{source}: metadata and spec must be given")
    mode = complete(service, wanted, model)
    if wanted.plain_service and mode != "Knative":
        raise RenderError(f"{source}: --knative-service, but the mode is {mode}")
    parts = list(components(service, mode, wanted.plain_service))
    files = {}
    if wanted.plain_service:
        files["service.yaml"] = dump(plain_service(service))
    else:
        files["inferenceservice.yaml"] = dump(service)
    others = [dump(document) for document in documents if document is not service]
    if others:
        files["others.yaml"] = "---\n".join(others)
    files |= dict(beside(parts, mode, wanted))
    return {"kustomization.yaml": kustomization(list(files), wanted.namespace), **files}


def _valid(files: dict[str, str]) -> bool:
    """Says on standard error what is wrong."""
    from .manifests import read
    from .rules import findings
    from .schema import bundled

    documents = [document for name, text in files.items() for document in read(text, name)]
    errors = 0
    for document, finding in findings(documents, bundled()):
        line = finding.line or document.line_of(finding.place)
        print(f"{document.file}:{line}: {finding.severity}: {finding.message} [{finding.rule}]", file=sys.stderr)
        errors += finding.severity == "error"
    return not errors
