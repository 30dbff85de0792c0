"""What the context says, at load and at a request: nothing in it but what an archive's own code may rely on."""

import json
import os
import sys

import ts

LOADED = {}


class ContextHandler:
    def initialize(self, context):
        properties = context.system_properties
        folder = properties["model_dir"]
        places = [os.path.realpath(entry) for entry in sys.path]
        LOADED.update(
            name=context.model_name,
            manifest=context.manifest,
            properties={key: properties.get(key) for key in ("gpu_id", "batch_size", "server_name", "server_version")},
            pixels=properties.get("limit_max_image_pixels"),
            yaml=context.model_yaml_config,
            metrics=context.metrics is not None,
            is_working_directory=os.path.realpath(folder) == os.getcwd(),
            is_before_packages=places.index(os.path.realpath(folder)) < places.index(os.path.dirname(ts.__path__[0])),
            files=sorted(os.path.relpath(os.path.join(at, name)) for at, _, names in os.walk(".") for name in names
                         if not name.endswith(".pyc")),
        )  # fmt: skip

    def handle(self, data, context):
        context.metrics.add_counter("asked", 1, 0)
        context.metrics.add_time("took", 1.0, 0, "ms")
        sent = context.get_all_request_header(0)
        request = {
            "x-own": context.get_request_header(0, "X-Own"),
            "in other case": context.get_request_header(0, "x-own"),
            "explain": context.get_request_header(0, "explain"),
            "url_path": sent.get("url_path"),
            "parts": {key: value for key, value in sent.items() if isinstance(value, dict)},
            "ids": len(context.request_ids),
            "id": context.get_request_id(0) == context.request_ids[0],
            "status": context.get_response_status(0),
            "type": context.get_response_content_type(0),
            "sequence": context.get_sequence_id(0),
        }
        return [json.dumps({"loaded": LOADED, "request": request}, sort_keys=True)] * len(data)
