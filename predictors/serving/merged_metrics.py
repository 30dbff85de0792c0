"""The metrics of several processes as one: counts are summed, and a gauge stands for each process, by the label `process`."""

from collections.abc import Iterable

from .exposition import exposition


def merged(texts: Iterable[tuple[str, str]], *, gauges: bool = True) -> str:
    """One text in Prometheus's format of several, each given as (process, text).

    gauges: whether to keep what is not a count.
    """
    from prometheus_client.core import Metric
    from prometheus_client.parser import text_string_to_metric_families

    families: dict[str, Metric] = {}
    sums: dict[tuple[str, str, tuple[tuple[str, str], ...]], float] = {}
    for process, text in texts:
        for family in text_string_to_metric_families(text):
            is_count = family.type in ("counter", "histogram")
            if not (is_count or gauges):
                continue
            families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                labels = sample.labels if is_count else {**sample.labels, "process": process}
                key = family.name, sample.name, tuple(labels.items())
                sums[key] = sums.get(key, 0.0) + sample.value
    for (family_name, name, items), value in sums.items():
        families[family_name].add_sample(name, dict(items), value)

    class Families:
        def collect(self) -> Iterable[Metric]:
            return families.values()

    return exposition(Families()).decode()
