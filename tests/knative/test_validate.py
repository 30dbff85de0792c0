"""Files as `torpor validate` reads them, what public ones get, and its command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torpor.knative.crds import Table
from torpor.knative.manifests import read
from torpor.knative.quantities import amount, memory
from torpor.knative.rules import findings
from torpor.knative.schema import Schemas, bundled

SAMPLES = Path(__file__).parent / "samples"
ROOT = Path(__file__).resolve().parent.parent.parent
TORPOR = Path(sys.executable).with_name("torpor")
CONFIG = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata:\n"


def validate(*arguments: str | Path, given: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TORPOR, "validate", *arguments], input=given, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("project", ["kserve", "serving", "eventing"])
def test_the_projects_own_samples_raise_no_false_alarm(project: str) -> None:
    """Each of them by itself: no error in what KServe and Knative publish without fault."""
    documents = read((SAMPLES / f"{project}.yaml").read_text(), project)
    assert len(documents) > 10 or project == "eventing"
    errors = [
        f"{document.line_of(finding.place)}: {finding.message}"
        for alone in documents
        for document, finding in findings([alone], bundled())
        if finding.severity == "error"
    ]
    assert errors == []


def broken() -> list[tuple[str, str, str]]:
    """Source, rule and text."""
    found = []
    for text in (SAMPLES / "broken.yaml").read_text().split("\n---\n"):
        source, _, rule = text.splitlines()[0].removeprefix("# ").rpartition(": ")
        found.append((source, rule, text))
    return found


@pytest.mark.parametrize(("source", "rule", "text"), broken())
def test_a_file_from_a_public_issue_is_told_its_fault(source: str, rule: str, text: str) -> None:
    """People asked what was wrong with them."""
    assert rule in {finding.rule for _, finding in findings(read(text), bundled())}, source


def test_the_examples_are_faultless() -> None:
    """But for a warning that says what the event example does without, on purpose."""
    done = validate("examples", given="")
    assert done.returncode == 0, done.stdout
    assert [line.rpartition(" ")[2] for line in done.stdout.splitlines()] == ["[dead-letter]"]


def test_documents_are_read_each_by_itself() -> None:
    """A fault in one hides none in the others, and lines count from the file's top."""
    first, second, third = read(f"{CONFIG}  a: [\n---\n# a comment\n---\n{CONFIG}  a: b\n  a: c\n---\n{CONFIG}  a: x\n")
    assert [fault.line for fault in first.faults] == [6]
    assert [fault.line for fault in second.faults] == [14]
    assert "data.a is already on line 13" in second.faults[0].message
    assert (third.faults, third.line, third.line_of(("data", "a"))) == ([], 16, 20)


def test_anchors_and_merge_keys_are_followed() -> None:
    """What is written at a key counts before what is merged into it, and an anchor ends with its document."""
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [*a, {z: 4}]}\nd: *a\n"
    assert read(text)[0].data == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"x": 1, "y": 2, "z": 4},
        "d": {"x": 1, "y": 2},
    }
    (_, second) = read(text + "---\ne: *a\n")
    assert second.faults


def test_what_never_ends_is_refused() -> None:
    """An alias in its own anchor, and aliases of aliases that would be a billion values."""
    assert "its own anchor" in read("a: &a [*a]\n")[0].faults[0].message
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (document,) = read("\n".join(lines))
    assert "more than" in document.faults[0].message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", True), ("'on'", "on"), ("no", False), ("~", None), ("", None), ("0644", 420), ("0x1F", 31), ("1_000", 1000),
        ("1e3", 1000.0), ("12", 12), ('"12"', "12"), ("-7", -7), (".5", 0.5), ("2001-01-01", "2001-01-01"), ("12:30", "12:30"),
        ("|\n  12", "12\n"), ("!!str 12", "12"),
    ],
)  # fmt: skip
def test_scalars_mean_what_they_mean_to_kubectl(text: str, value: object) -> None:
    """YAML 1.1, without its base 60 and its dates."""
    (document,) = read(f"a: {text}\n")
    assert document.data["a"] == value
    assert type(document.data["a"]) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "image: {{ .Values.image }}", "{{- if .Values.on }}\na: b\n{{- end }}", 'image: "{{ image }}:1"', "{% if x %}\na: b",
        "image: {user}/x", "name: ${NAME}",
    ],
)  # fmt: skip
def test_a_template_that_was_left_in_is_called_that(text: str) -> None:
    """Helm's, Jinja's, a shell's, whether YAML can read it or not."""
    body = "\n".join("  " + line for line in text.splitlines())
    text = f"apiVersion: eventing.knative.dev/v1\nkind: Broker\nmetadata: {{name: b}}\nspec:\n{body}\n"
    assert "template" in {finding.rule for _, finding in findings(read(text), bundled())}


def test_a_list_is_its_items() -> None:
    """As `kubectl get -o yaml` prints them; each keeps its lines."""
    one, two = read("apiVersion: v1\nkind: List\nitems:\n- kind: A\n  x: 1\n- kind: B\n")
    assert (one.kind, one.line_of(("x",)), two.kind, two.line) == ("A", 5, "B", 6)


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@, \n\t?<", max_size=60))
def test_no_text_ends_the_reader(text: str) -> None:
    """Every document is data or has a fault."""
    for document in read(text):
        assert document.faults or document.line >= 1


FIELDS = [
    "metadata",
    "annotations",
    "name",
    "spec",
    "predictor",
    "containers",
    "model",
    "env",
    "ports",
    "template",
    "filters",
    "subscriber",
    "ref",
    "delivery",
    "traffic",
    "resources",
    "readinessProbe",
    "canary",
    "nodes",
    "steps",
]
KINDS = (
    "serving.kserve.io/v1beta1 InferenceService",
    "serving.kserve.io/v1alpha1 ServingRuntime",
    "serving.kserve.io/v1alpha1 InferenceGraph",
    "serving.knative.dev/v1 Service",
    "eventing.knative.dev/v1 Trigger",
)


def nested(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), nested), st.sampled_from(KINDS))
def test_no_value_of_a_wrong_type_ends_a_rule(spec: object, kind: str) -> None:
    """Rules walk over whatever stands there; the schema says that it may not."""
    api_version, name = kind.split()
    text = json.dumps({"apiVersion": api_version, "kind": name, "metadata": {"name": "a"}, "spec": spec})
    assert all(finding.message for _, finding in findings(read(text), bundled()))


def test_the_command_says_where_and_ends_with_a_status(tmp_path: Path) -> None:
    """0, 1 for errors (and warnings with --strict), 2 for a file that is not there."""
    good, bad, odd = tmp_path / "good.yaml", tmp_path / "bad.yaml", tmp_path / "odd.yaml"
    head = "apiVersion: eventing.knative.dev/v1\nkind: Broker\nmetadata:\n"
    good.write_text(f"{head}  name: b\n")
    bad.write_text(f"{head}  name: B\n")
    odd.write_text(f"{head}  name: b\nspec: {{delivery: {{retry: 3}}}}\n")
    assert validate(good).returncode == 0
    done = validate(bad)
    assert done.returncode == 1
    assert done.stdout.startswith(f'{bad}:4: error: metadata.name = "B", must be ')
    assert done.stderr == "1 object, 1 error, 0 warnings\n"
    assert (validate(odd).returncode, validate("--strict", odd).returncode, validate("--quiet", odd).stdout) == (
        0,
        1,
        "",
    )
    assert validate(tmp_path).stdout.count("\n") == 3  # bad's, odd's, and that good's name is odd's too
    assert validate(tmp_path / "none.yaml").stderr == f"torpor: {tmp_path}/none.yaml: No such file or directory\n"
    assert validate(tmp_path / "none.yaml").returncode == validate().returncode == 2


def test_findings_are_json_on_request() -> None:
    """One object a line, from standard input too."""
    done = validate("-", "--json", given="kind: Broker\napiVersion: eventing.knative.dev/v1\nmetadata: {name: B}\n")
    (finding,) = map(json.loads, done.stdout.splitlines())
    assert (finding["file"], finding["line"], finding["rule"], finding["path"]) == (
        "<stdin>",
        3,
        "name",
        "metadata.name",
    )
    assert done.stderr == ""


def test_a_clusters_own_schemas_count_before_those_that_came_with_torpor(tmp_path: Path) -> None:
    """An older cluster knows fewer fields."""
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"old": {"type": "string"}}}}}
    version = {"name": "v1", "served": True, "schema": {"openAPIV3Schema": schema}}
    spec = {"group": "eventing.knative.dev", "names": {"kind": "Broker"}, "versions": [version]}
    crds = tmp_path / "crds.json"
    crds.write_text(json.dumps({"kind": "List", "items": [{"kind": "CustomResourceDefinition", "spec": spec}]}))
    text = "apiVersion: eventing.knative.dev/v1\nkind: Broker\nmetadata: {name: b}\nspec: {delivery: {}}\n"
    done = validate("--crds", crds, "-", given=text)
    assert "spec.delivery = {}, must be left out: the cluster has no such field here" in done.stdout
    assert validate("-", given=text).stdout == ""


def test_a_table_keeps_each_schema_once() -> None:
    """A pod's schema is in six places of InferenceService."""
    part = {"type": "object", "properties": {"a": {"type": "string", "description": "long"}}}
    spec = {"type": "object", "properties": {"x": part, "y": part}}
    version = {
        "name": "v1",
        "served": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}},
    }
    table = Table()
    table.add({"spec": {"group": "g", "names": {"kind": "K"}, "versions": [version]}})
    top = table.schemas[table.kinds["g/v1/K"]]
    places = table.schemas[top["properties"]["spec"]]["properties"]
    assert places["x"] == places["y"]
    schemas = Schemas()
    schemas.add_table("here", table)
    data = {"apiVersion": "g/v1", "kind": "K", "metadata": {}, "spec": {"x": {"b": 1}}}
    assert [finding.message for finding in schemas.check(data)] == [
        "spec.x.b = 1, must be left out: here has no such field here and drops it"
    ]


@given(st.integers(1, 2**50))
def test_quantities_are_read_as_they_are_written(size: int) -> None:
    """To the next kibibyte."""
    assert 0 <= amount(memory(size)) - size < 1024


@pytest.mark.parametrize(
    ("text", "value"), [("500m", 0.5), ("2", 2), ("1.5Gi", 1.5 * 2**30), ("1e3", 1000), ("1k", 1000)]
)
def test_quantities_have_units_of_tens_and_of_twos(text: str, value: float) -> None:
    """As Kubernetes writes them; its milli is for cores."""
    assert float(amount(text)) == value
    for wrong in ("1GiB", "", "m", "1 Gi", "1Ki5"):
        with pytest.raises(ValueError, match="no quantity"):
            amount(wrong)
