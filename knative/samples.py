"""What a process tells at /metrics, read by Prometheus's own client: name, labels and value of each sample."""

from collections.abc import Iterator, Mapping

Sample = tuple[str, Mapping[str, str], float]


def samples(text: str) -> Iterator[Sample]:
    """Of Prometheus's text format. Raises ValueError."""
    from prometheus_client.parser import text_string_to_metric_families  # here, since `torpor serve` starts without it

    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value
