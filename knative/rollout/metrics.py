"""Where the counts of a revision's pods come from: the pods themselves, or a Prometheus that has asked them."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from torpor.knative.cluster import Cluster, ClusterAway, ClusterRefused, Object

from ..samples import Sample, samples
from .counts import LATENCIES, Counts, counted
from .explanation import model_container

PORT = 8080
"""Knative's own default."""
QUERY_TIMEOUT_S = 10.0


class Metrics(Protocol):
    def counts(self, revision: str, pods: list[Object]) -> Mapping[str, Counts]:
        """By pod, since its start. pods: the revision's. One that does not answer is missing. Raises ClusterAway."""


class PodMetrics:
    """torpor's /metrics, through the API server."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def counts(self, revision: str, pods: list[Object]) -> Mapping[str, Counts]:
        found = {}
        for pod in pods:
            metadata = pod["metadata"]
            if pod.get("status", {}).get("phase") != "Running":
                continue
            ports = model_container(pod).get("ports") or [{"containerPort": PORT}]
            try:
                text = self._cluster.ask_pod(
                    metadata["namespace"], metadata["name"], ports[0]["containerPort"], "/metrics"
                )
            except (ClusterAway, ClusterRefused) as error:
                # A pod that starts, ends or hangs; the API server being away is seen by every other call.
                if isinstance(error, ClusterRefused) and error.status == 403:
                    raise
                continue
            with suppress(ValueError):  # another server than torpor
                found[metadata["name"]] = counted(samples(text))
        return found


class PrometheusMetrics:
    """url: of its root. It must keep the labels `namespace` and `pod`, as the usual scrape configurations do."""

    def __init__(self, url: str, namespace: str) -> None:
        self._url = url.rstrip("/")
        self._namespace = namespace

    def counts(self, revision: str, pods: list[Object]) -> Mapping[str, Counts]:
        series = "|".join(["torpor_requests_total", *(f"{name}_bucket" for name in LATENCIES)])
        pod = re.escape(revision).replace("\\", "\\\\")
        matching = f'__name__=~"{series}",namespace="{self._namespace}",pod=~"{pod}-deployment-.*"'
        url = f"{self._url}/api/v1/query?{urlencode({'query': f'{{{matching}}}'})}"
        try:
            with urlopen(url, timeout=QUERY_TIMEOUT_S) as answer:
                result = json.load(answer)["data"]["result"]
        except (URLError, OSError, ValueError, KeyError) as error:
            raise ClusterAway(f"Prometheus at {self._url}: {error}") from None
        told: dict[str, list[Sample]] = {}
        for entry in result:
            labels = entry["metric"]
            told.setdefault(labels["pod"], []).append((labels["__name__"], labels, float(entry["value"][1])))
        return {name: counted(samples) for name, samples in told.items()}
