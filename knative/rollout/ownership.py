"""Server-side apply beside others who own fields of the same object."""

import re

from torpor.knative.cluster import FIELD_MANAGER, Cluster, ClusterRefused, Object

_MANAGER = re.compile(r'conflict with "([^"]+)"')
_OWN_HANDS = (FIELD_MANAGER, "kubectl", "before-first-apply")
"""Managers whose fields are taken over: torpor's own patches, and what a person applied with kubectl. Any other
is a program that would set its values again, and is asked about first."""


def apply(cluster: Cluster, document: Object, namespace: str, *, dry_run: bool, force: bool) -> Object:
    """Raises ClusterRefused naming the other managers, unless `force`."""
    try:
        return cluster.apply(document, namespace, dry_run=dry_run, force=force)
    except ClusterRefused as error:
        managers = sorted({name for cause in (*error.causes, str(error)) for name in _MANAGER.findall(cause)})
        others = [name for name in managers if not name.startswith(_OWN_HANDS)]
        if error.status != 409 or not managers:
            raise
        if others:
            told = "; ".join(error.causes) or str(error)
            raise ClusterRefused(
                f"fields belong to {', '.join(others)}, which would set them again ({told}); --force-conflicts takes them",
                error.status, error.reason, error.causes,
            ) from None  # fmt: skip
    return cluster.apply(document, namespace, dry_run=dry_run, force=True)
