"""An archive's handler in a script of its own, without a server: `bare_archive.py ARCHIVE BODY raw|text`.

Unpacks it, loads it as a worker would, gives it the file BODY as its one row, prints the answer's size
and waits to be ended.
"""

import importlib
import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path


def main() -> None:
    body = Path(sys.argv[2]).read_bytes()
    with tempfile.TemporaryDirectory(prefix="bare-") as folder, zipfile.ZipFile(sys.argv[1]) as archive:
        archive.extractall(folder)
        os.chdir(folder)
        sys.path.insert(0, folder)
        manifest = json.loads(Path("MAR-INF/MANIFEST.json").read_text())
        module = importlib.import_module(manifest["model"]["handler"].removesuffix(".py"))
        import ts
        from ts.context import Context, RequestProcessor
        from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
        from ts.utils.util import list_classes_from_module

        metrics = MetricsCacheYamlImpl(Path(ts.__file__).parent / "configs" / "metrics.yaml")
        context = Context("bare", folder, manifest, 1, None, ts.__version__, metrics=metrics, model_yaml_config={})
        (cls,) = list_classes_from_module(module)
        handler = cls()
        handler.initialize(context)
        context.request_processor, context.request_ids = [RequestProcessor({})], {0: "one"}
        metrics.request_ids = {0: "one"}
        (answer,) = handler.handle([{"body": body if sys.argv[3] == "raw" else body.decode()}], context)
        print(len(answer), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
