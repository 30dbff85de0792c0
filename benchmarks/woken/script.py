"""What somebody writes who has a class and an afternoon: torch, the class, the standard library's server."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

sys.path.insert(0, "/opt/torpor/examples/mlp")
from model import Mlp


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(b"{}")

    def do_POST(self) -> None:
        rows = json.loads(self.rfile.read(int(self.headers["content-length"])))["instances"]
        with torch.inference_mode():
            answer = model.predict(torch.tensor(rows))
        self._answer(json.dumps({"predictions": answer.tolist()}).encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


torch.set_num_threads(1)
model = Mlp()
model.load()
ThreadingHTTPServer(("", 8080), Handler).serve_forever()
