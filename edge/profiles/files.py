"""All files of a node, by their names in a folder: `k3s/` for K3s and containerd, `manifests/` for a bundle's `--manifest`."""

from pathlib import Path

from torpor.knative.manifests import read
from torpor.knative.render import Model, RenderError, read_model
from torpor.knative.rules import findings
from torpor.knative.schema import bundled
from torpor.predictors.settings import SettingError

from ..refused import Refused
from .k3s_settings import k3s_settings
from .objects import objects
from .profile import Profile
from .workload import FEATURES, Workload, folder_digest, service_of, workload_files


def node_files(
    profile: Profile, service: str, folder: Path | None, path: str, image: str, namespace: str, node_root: str
) -> dict[str, str]:
    """Settings and objects; with a service's text or a model's folder its workload too. Raises Refused.

    path: where the image has the model, "" for the node's bundle. node_root: where the node has its bundles.
    """
    files = {f"k3s/{name}": text for name, text in k3s_settings(profile)}
    if profile.has_knative:
        files["knative/config-features.yaml"] = FEATURES
    files |= {f"manifests/{name}": text for name, text in objects(profile, namespace)}
    if not service and folder is None:
        return files
    for document in read(service) if service else ():
        if document.faults:
            raise Refused(
                "malformed", f"the service's file, line {document.faults[0].line}: {document.faults[0].message}"
            )
    model = _model(folder) if folder else None
    given = Workload(
        service_of(service, model, path, image),
        model,
        folder_digest(folder) if folder else "",
        image,
        namespace,
        node_root,
    )
    try:
        files |= {f"manifests/{name}": text for name, text in workload_files(given, profile)}
    except RenderError as error:
        raise Refused("malformed", str(error)) from None
    _check_valid(files)
    return files


def _model(folder: Path) -> Model:
    try:
        return read_model(folder)
    except SettingError as error:
        raise Refused("malformed", str(error)) from None


def _check_valid(files: dict[str, str]) -> None:
    """By the rules of `torpor validate`."""
    documents = [
        document for name, text in files.items() if name.startswith("manifests/") for document in read(text, name)
    ]
    for document, finding in findings(documents, bundled()):
        if finding.severity == "error":
            raise Refused("malformed", f"{document.file}: {finding.message} [{finding.rule}]")
