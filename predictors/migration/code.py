"""What an archive's own Python code says of itself: read, never run."""

import ast
from pathlib import Path

_UNCARRIED = {
    "send_intermediate_predict_response": "answers in pieces: the pieces are lost, the last one is the answer",
    "set_response_header": "header fields of an answer that the handler sets",
    "set_response_content_type": "content types that the handler sets: an answer is JSON",
    "set_response_status": "statuses that the handler sets: one below 400 is 200, of 4xx 400, of 5xx 500",
    "set_all_response_status": "statuses that the handler sets: one below 400 is 200, of 4xx 400, of 5xx 500",
    "get_insights": "explanations",
    "PredictionException": "statuses of PredictionException: one of 4xx is 400, of 5xx 500",
    "add_counter": "counters of `context.metrics`: nobody reads them",
    "add_metric_to_cache": "metrics of `context.metrics`: nobody reads them",
    "chdir": "working folders that the code changes: it shares its process with the server",
    "_exit": "the end of its process, which is the server's too",
}
"""Names that the code uses, and what of them does not come along."""


class Code:
    """The modules of a folder. Those that cannot be parsed say nothing: who imports them will."""

    def __init__(self, folder: Path) -> None:
        self._names: set[str] = set()
        self._imports: set[str] = set()
        self._defined: set[str] = set()
        for file in sorted(folder.rglob("*.py")):
            try:
                tree = ast.parse(file.read_bytes())
            except (SyntaxError, ValueError):
                continue
            for node in ast.walk(tree):
                self._look(node)

    @property
    def imports_torchserve(self) -> bool:
        """Whether it needs the package `torchserve` beside torpor."""
        return "ts" in self._imports

    @property
    def reads_weights_itself(self) -> bool:
        """Whether somebody but TorchServe's base handler may read the pickled weights."""
        reads = {"torch.load", "pickle.load", "joblib.load"} & self._names
        return not self.imports_torchserve or bool(reads or "_load_pickled_model" in self._defined)

    def uncarried(self) -> list[str]:
        """What of its uses does not come along, each once."""
        used = self._names | self._defined
        return list(dict.fromkeys(text for name, text in _UNCARRIED.items() if name in used))

    def _look(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            self._imports.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            self._imports.add((node.module or "").partition(".")[0])
            for alias in node.names:
                self._names.update((alias.name, f"{node.module}.{alias.name}"))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self._defined.add(node.name)
        elif isinstance(node, ast.Attribute):
            self._names.add(node.attr)
            if isinstance(node.value, ast.Name):
                self._names.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.Name):
            self._names.add(node.id)
