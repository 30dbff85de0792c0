"""Rules of Knative Eventing: what delivers events, and to whom.

Sources: knative/eventing pkg/apis/eventing/v1/trigger_validation.go, pkg/apis/duck/v1/delivery_types.go,
pkg/kncloudevents/retries.go, pkg/broker/filter.
"""

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from .fields import Field
from .findings import Finding
from .schema import Schemas

_ATTRIBUTE = re.compile(r"[a-z0-9]+")
_DURATION = re.compile(r"P(?=.)(\d+([.,]\d+)?Y)?(\d+([.,]\d+)?M)?(\d+([.,]\d+)?W)?(\d+([.,]\d+)?D)?"
                       r"(T(?=.)(\d+([.,]\d+)?H)?(\d+([.,]\d+)?M)?(\d+([.,]\d+)?S)?)?")  # fmt: skip
_DIALECTS = ("exact", "prefix", "suffix", "all", "any", "not", "cesql")
_COLD_START = re.compile(r"PT([0-9](\.\d+)?)S")
"""A delivery's time-out of less than ten seconds."""


def broker(top: Field, schemas: Schemas) -> Iterator[Finding]:
    yield from _delivery(top["spec"]["delivery"])


def trigger(top: Field, schemas: Schemas) -> Iterator[Finding]:
    spec = top["spec"]
    if spec["subscriber"] or spec:
        yield from destination(spec["subscriber"])
    attributes, filters = spec["filter"]["attributes"], spec["filters"]
    for name, value in attributes.entries.items():
        yield from _attribute(name, value)
    for entry in filters:
        yield from _filter(entry)
    if [*filters] and attributes.entries:
        yield spec["filter"].finding("filter-ignored", "left out beside `filters`", "only `filters` counts")
    if not [*filters] and not attributes.entries:
        why = "the subscriber's answers come back to the broker and so to it: a loop of up to 255 rounds"
        yield spec["filter"].finding("unfiltered", "given, by type at least", why)
    yield from _delivery(spec["delivery"], loses=True)


def subscription(top: Field, schemas: Schemas) -> Iterator[Finding]:
    spec = top["spec"]
    for field in (spec["subscriber"], spec["reply"]):
        if field:
            yield from destination(field)
    yield from _delivery(spec["delivery"], loses=True)


def sequence(top: Field, schemas: Schemas) -> Iterator[Finding]:
    steps = top["spec"]["steps"]
    if top["spec"] and not [*steps]:
        yield steps.finding("subscriber", "at least one step", "Knative refuses it")
    for step in steps:
        yield from destination(step)
        yield from _delivery(step["delivery"])
    if top["spec"]["reply"]:
        yield from destination(top["spec"]["reply"])


def parallel(top: Field, schemas: Schemas) -> Iterator[Finding]:
    for branch in top["spec"]["branches"]:
        for name in ("filter", "subscriber", "reply"):
            if branch[name] or name == "subscriber":
                yield from destination(branch[name])
        yield from _delivery(branch["delivery"])
    if top["spec"]["reply"]:
        yield from destination(top["spec"]["reply"])


def source(top: Field, schemas: Schemas) -> Iterator[Finding]:
    yield from destination(top["spec"]["sink"])
    yield from _overrides(top["spec"]["ceOverrides"])


def sink_binding(top: Field, schemas: Schemas) -> Iterator[Finding]:
    yield from source(top, schemas)
    subject = top["spec"]["subject"]
    if subject["kind"].text == "InferenceService":
        why = "eventing-webhook may not list them; what KServe makes of one is NAME-predictor"
        yield subject["kind"].finding("sink-kind", "Service (serving.knative.dev) or Deployment", why)
    if subject and bool(subject["name"].text) == bool(subject["selector"]):
        yield subject.finding("binding", "with either name or selector", "Knative refuses none and both")


def destination(field: Field) -> Iterator[Finding]:
    """A subscriber, sink or reply: a ref, a uri, or a ref with a path beneath."""
    ref, uri = field["ref"], field["uri"]
    if not ref and not uri:
        yield field.finding("subscriber", "given as ref or uri", "there is nobody to deliver to")
        return
    if ref["kind"].text == "InferenceService":
        why = (
            "Eventing's controllers may not read InferenceServices; its Knative Service is NAME-predictor or NAME-transformer, "
            "of serving.knative.dev/v1"
        )
        yield ref["kind"].finding("sink-kind", "Service", why)
    if ref:
        for name in ("kind", "name", "apiVersion"):
            if not ref[name].text and not (name == "apiVersion" and ref["group"].text):
                yield ref[name].finding("subscriber", "given", "Knative refuses a ref without")
    if uri.text and not ref and not (urlsplit(uri.text).scheme and urlsplit(uri.text).netloc):
        yield uri.finding(
            "subscriber", "absolute, like http://HOST/PATH", "it stands alone, without a ref to be relative to"
        )


def _attribute(name: str, value: Field) -> Iterator[Finding]:
    if not _ATTRIBUTE.fullmatch(name):
        why = "no event has such an attribute: those of CloudEvents are lower-case letters and digits"
        yield value.finding("filter", "named by a-z and 0-9 only", why)


def _filter(entry: Field) -> Iterator[Finding]:
    given = [name for name in entry.entries if name in _DIALECTS]
    if len(given) != 1:
        yield entry.finding("filter", f"one of {', '.join(_DIALECTS)}", "Knative refuses none and several in one entry")
    for dialect in ("exact", "prefix", "suffix"):
        for name, value in entry[dialect].entries.items():
            yield from _attribute(name, value)
            if dialect != "exact" and value.value == "":
                yield value.finding("filter", "not empty", "Knative refuses it")
    for dialect in ("all", "any"):
        for part in entry[dialect]:
            yield from _filter(part)
    if entry["not"]:
        yield from _filter(entry["not"])


def _delivery(delivery: Field, loses: bool = False) -> Iterator[Finding]:
    """loses: what fails for good has no other dead letter sink than this one."""
    retry, policy, delay = delivery["retry"], delivery["backoffPolicy"], delivery["backoffDelay"]
    if retry.number is not None and (retry.number < 0 or retry.number != int(retry.number)):
        yield retry.finding("delivery", "a whole number of at least 0", "Knative refuses it")
    if policy and policy.value not in ("linear", "exponential"):
        yield policy.finding("delivery", "linear or exponential", "Knative refuses it")
    for field in (delay, delivery["timeout"], delivery["retryAfterMax"]):
        if field and not _DURATION.fullmatch(field.text):
            yield field.finding("delivery", "a duration of ISO 8601, like PT0.5S or PT2M", "Knative refuses it")
    if (retry.number or 0) > 0 and not (policy and delay):
        missing = " and ".join(
            name for name, field in (("backoffPolicy", policy), ("backoffDelay", delay)) if not field
        )
        yield retry.finding("back-off", f"with {missing}", "without both all tries are made within milliseconds")
    if delivery["retryAfterMax"]:
        why = "the feature delivery-retryafter is off by default, and Knative refuses the field then"
        yield delivery["retryAfterMax"].finding("retry-after", "left out", why)
    if (timeout := delivery["timeout"]) and _COLD_START.fullmatch(timeout.text):
        why = "a subscriber at zero has to start within it, or the event is tried again and starts nothing earlier"
        yield timeout.finding("delivery-timeout", "at least PT10S", why)
    if delivery["deadLetterSink"]:
        yield from destination(delivery["deadLetterSink"])
    elif loses and delivery:
        why = "an event whose tries are over is gone, unless the broker has one"
        yield delivery["deadLetterSink"].finding("dead-letter", "given", why)


def _overrides(overrides: Field) -> Iterator[Finding]:
    for name, value in overrides["extensions"].entries.items():
        if not _ATTRIBUTE.fullmatch(name):
            yield value.finding("binding", "named by a-z and 0-9 only", "Knative refuses other names of extensions")
