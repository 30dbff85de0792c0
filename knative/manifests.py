"""YAML files as Kubernetes reads them: documents of plain dicts and lists, and the line on which each path stands.

A file is cut at its `---` lines first, as kubectl does, so that a fault in one document hides no other, and an anchor is known
in its own document only. Scalars mean what they mean to kubectl, which reads YAML 1.1 (sigs.k8s.io/yaml, after go-yaml v2):
`on` and `yes` are booleans, `0644` is octal, `1e3` is a number, a date is a string.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Node = Any
"""ruamel.yaml's, imported when a file is read: a scalar's, a sequence's or a mapping's."""
Step = str | int
Place = tuple[Step, ...]
"""Of a value in its document: keys and indices from the top."""

SUFFIXES = (".yaml", ".yml")
NO_OBJECTS = ("kustomization.yaml", "kustomization.yml", "Chart.yaml", "values.yaml")
"""Files beside manifests that are none."""
MOST_VALUES = 200_000
"""In one document with its aliases followed: more is an attack, or as good as one. A large InferenceService has 200."""

_SEPARATOR = re.compile(r"^---(?=\s|$)", re.MULTILINE)
_TEMPLATE = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|<%.*?%>", re.DOTALL)
_PLACEHOLDER = re.compile(r"(?<=[:-]) +(\{[\w.-]+\})(?=[^\s,])")
"""`{user}/image`: what a reader was to replace; YAML takes it as a mapping with text behind it."""


@dataclass(frozen=True)
class Fault:
    """What keeps a document from being read. line: 1 is the file's first."""

    line: int
    message: str
    template: bool = False


@dataclass
class Document:
    """One object of a file. data: what it says. faults: why it says nothing, or less than it seems to."""

    file: str
    line: int
    data: Any = None
    faults: list[Fault] = field(default_factory=list)
    lines: dict[Place, int] = field(default_factory=dict, repr=False)

    @property
    def kind(self) -> str:
        return str(self.data.get("kind", "")) if isinstance(self.data, dict) else ""

    @property
    def api_version(self) -> str:
        return str(self.data.get("apiVersion", "")) if isinstance(self.data, dict) else ""

    @property
    def name(self) -> str:
        metadata = self.data.get("metadata") if isinstance(self.data, dict) else None
        return str(metadata.get("name", "")) if isinstance(metadata, dict) else ""

    def line_of(self, place: Place) -> int:
        """Of the value, or where there is none of what would hold it."""
        while place not in self.lines and place:
            place = place[:-1]
        return self.lines.get(place, self.line)


class TooLarge(Exception):
    """More values than `MOST_VALUES`, aliases followed."""


def read_file(path: Path) -> list[Document]:
    """Raises OSError, and ValueError without ruamel.yaml; a file that is no UTF-8 is a document with a fault."""
    try:
        return read(path.read_bytes().decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        return [Document(str(path), 1, faults=[Fault(1, f"no UTF-8: {error.reason} at byte {error.start}")])]


def read(text: str, file: str = "<stdin>") -> list[Document]:
    """The documents of a file that say anything. A List is its items."""
    documents = []
    begin = 0
    for end in [*(match.start() for match in _SEPARATOR.finditer(text)), len(text)]:
        documents += _items(_document(text[begin:end], file, text.count("\n", 0, begin)))
        begin = end
    return documents


def files_of(path: Path) -> Iterator[Path]:
    """A file itself; of a folder its YAML files, sorted, those of its folders too, but for hidden ones."""
    if not path.is_dir():
        yield path
        return
    for found in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in found.relative_to(path).parts)
        if found.suffix in SUFFIXES and found.name not in NO_OBJECTS and found.is_file() and not hidden:
            yield found


def text_of(place: Place) -> str:
    """As kubectl writes it: spec.containers[0].image; a key with other characters in brackets."""
    text = ""
    for step in place:
        if isinstance(step, int):
            text += f"[{step}]"
        elif re.fullmatch(r"[\w$-]+", step):
            text += f".{step}" if text else step
        else:
            text += f"[{step}]"
    return text


def _document(text: str, file: str, lines_before: int) -> list[Document]:
    try:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError, YAMLError
    except ModuleNotFoundError:
        raise ValueError("ruamel.yaml is not installed: pip install 'torpor[knative]'") from None

    document = Document(file, lines_before + 1)
    try:
        node = YAML(typ="rt", pure=True).compose(text)
        if node is None:
            return []
        document.line = lines_before + node.start_mark.line + 1
        reader = _Reader(document, lines_before)
        document.data = reader.value(node, ())
    except TooLarge:
        document.faults.append(Fault(document.line, f"more than {MOST_VALUES} values, its aliases followed"))
    except RecursionError:
        document.faults.append(Fault(document.line, "nested too deeply"))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = lines_before + (mark.line + 1 if mark else 1)
        what = ", ".join(part.strip() for part in (error.problem, error.context) if part)
        document.faults.append(_unreadable(text, line, lines_before, what))
    except (YAMLError, ValueError) as error:
        document.faults.append(_unreadable(text, document.line, lines_before, " ".join(str(error).split())))
    return [document] if document.faults or document.data is not None else []


def _unreadable(text: str, line: int, lines_before: int, what: str) -> Fault:
    """What the parser says, or that there is a template where it stumbled, which is why."""
    lines = text.split("\n")
    for number in (line - lines_before, line - lines_before - 1, *range(1, len(lines) + 1)):
        content = lines[number - 1].partition(" #")[0] if 0 < number <= len(lines) else ""
        placeholder = _PLACEHOLDER.search(content)
        if found := template_in(content) or (placeholder and placeholder[1]):
            return Fault(lines_before + number, f"a template is left in, {found}: render it first", template=True)
    if "expected <block end>" in what:
        what = "this line is indented unlike the ones that it belongs to"
    if "\t" in (lines[line - lines_before - 1] if 0 < line - lines_before <= len(lines) else ""):
        what += "; a tab indents nothing in YAML"
    return Fault(line, f"no YAML: {what}")


def template_in(text: str) -> str:
    """The first of Helm's, Jinja's or ERB's; '' for none."""
    found = _TEMPLATE.search(text)
    return found[0] if found else ""


def _items(documents: list[Document]) -> list[Document]:
    """What a List holds, each with its own lines."""
    found = []
    for document in documents:
        items = document.data.get("items") if isinstance(document.data, dict) else None
        if document.kind != "List" or not isinstance(items, list) or not items:
            found.append(document)
            continue
        for number, item in enumerate(items):
            lines = {place[2:]: line for place, line in document.lines.items() if place[:2] == ("items", number)}
            faults = document.faults if number == 0 else []
            found.append(Document(document.file, lines.get((), document.line), item, faults, lines))
    return found


class _Reader:
    """Nodes to values. An alias's value is the same object, its lines are where the anchor stands."""

    def __init__(self, document: Document, lines_before: int) -> None:
        self._document = document
        self._lines_before = lines_before
        self._open: set[int] = set()
        self._count = 0

    def value(self, node: Node, place: Place) -> Any:
        """Raises TooLarge, RecursionError."""
        self._count += 1
        if self._count > MOST_VALUES:
            raise TooLarge
        self._document.lines.setdefault(place, self._line(node))
        if node.id == "scalar":
            return _scalar(node)
        if id(node) in self._open:
            self._fault(node, "an alias stands within its own anchor")
            return None
        self._open.add(id(node))
        try:
            return self._list(node, place) if node.id == "sequence" else self._dict(node, place)
        finally:
            self._open.discard(id(node))

    def _list(self, node: Node, place: Place) -> list[Any]:
        return [self.value(item, (*place, number)) for number, item in enumerate(node.value)]

    def _dict(self, node: Node, place: Place) -> dict[str, Any]:
        read: dict[str, Any] = {}
        written: dict[str, int] = {}
        merged: list[Node] = []
        for key_node, value_node in node.value:
            if key_node.id == "mapping":
                self._fault(key_node, "a template is left in, {{…}}: render it first", template=True)
                continue
            if key_node.id != "scalar":
                self._fault(key_node, "a key must be a string")
                continue
            if key_node.value == "<<" and key_node.style is None:
                merged += value_node.value if value_node.id == "sequence" else [value_node]
                continue
            key = str(key_node.value)
            if key in written:
                where = f"{text_of((*place, key))} is already on line {written[key]}"
                self._fault(key_node, f"{where}: the last of them would count, and kubectl refuses both")
            written[key] = self._line(key_node)
            self._document.lines[(*place, key)] = self._line(key_node)
            read[key] = self.value(value_node, (*place, key))
        for base in merged:
            if base.id != "mapping":
                self._fault(base, "<<: takes a mapping, or a list of them")
                continue
            for key, value in self.value(base, place).items():
                read.setdefault(key, value)
        return read

    def _line(self, node: Node) -> int:
        return int(node.start_mark.line) + self._lines_before + 1

    def _fault(self, node: Node, message: str, template: bool = False) -> None:
        self._document.faults.append(Fault(self._line(node), message, template))


_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
}
"""go-yaml v2's resolve.go; .nan is left a string: no field takes it."""

_INTEGER = re.compile(r"[-+]?(0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|[1-9][0-9_]*|0)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def _scalar(node: Node) -> Any:
    """Quoted ones, and those of block style, are strings."""
    text = str(node.value)
    if node.style is not None:
        return text
    if text in _WORDS:
        return _WORDS[text]
    plain = text.replace("_", "")
    if node.tag.endswith(":str"):  # what YAML 1.1 and 1.2 agree on, or an explicit !!str
        return text
    if _INTEGER.fullmatch(text):
        sign = -1 if plain.startswith("-") else 1
        digits = plain.lstrip("+-")
        if len(digits) > 1 and digits[0] == "0" and digits[1].isdigit():
            return sign * int(digits, 8)
        return sign * int(digits, 0)
    if _FLOAT.fullmatch(plain):
        return float(plain)
    return text
