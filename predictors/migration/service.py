"""The InferenceService of a migrated folder: `torpor render` completes it."""

import re

from torpor.knative.render import Model, new_service

from .folder import Migrated


def inference_service(migrated: Migrated, storage_uri: str) -> str:
    """storage_uri: below which the folder will lie, under the model's name."""
    name = service_name(migrated.name)
    text = new_service(Model(name), f"{storage_uri.rstrip('/')}/{migrated.name}", "", "")
    if name != migrated.name:
        text += f"      args: [--model-name={migrated.name}] # as in the archive's paths; no service can be called so\n"
    if migrated.needs_torchserve:
        text = (
            "# The runtime's image must have TorchServe's Python package: built with --build-arg EXTRAS=torchserve.\n"
            + text
        )
    return text


def service_name(name: str) -> str:
    """A name that Kubernetes takes for a Service of a revision: lower case, digits and -, a letter first."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].rstrip("-")
    return plain if plain[:1].isalpha() else f"m-{plain}".rstrip("-")
