"""Models fetched by the real kserve-storage, from servers of this machine: archives over HTTP, objects of S3."""

import io
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from up_process import Up, ask

pytest.importorskip("kserve_storage", reason="kserve-storage is not installed (pip install 'torpor[storage]')")

Start = Callable[..., Up]
MODEL = Path(__file__).parents[2] / "transformers" / "models" / "counts"


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def http_url(tmp_path: Path) -> Iterator[str]:
    """A web server with the model as counts.tar.gz and counts.zip."""
    folder = tmp_path / "www"
    folder.mkdir()
    with tarfile.open(folder / "counts.tar.gz", "w:gz") as tar, zipfile.ZipFile(folder / "counts.zip", "w") as archive:
        for file in MODEL.glob("*.*"):
            tar.add(file, file.name)
            archive.write(file, file.name)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def inference_service(uri: str) -> str:
    return f"""\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {{ name: words }}
spec: {{ predictor: {{ model: {{ modelFormat: {{ name: torpor }}, storageUri: "{uri}" }} }} }}
"""


def assert_fetched_once(up: Start, uri: str, **environment: str) -> None:
    """It serves what was fetched; a second start takes what lies there."""
    for _ in range(2):
        running = up(inference_service(uri), **environment)
        running.wait_for("words-predictor is awake")
        status, answer = ask(
            running.port("words-predictor"), "/v1/models/words:predict", "POST", b'{"instances": [[1.0, 2.0]]}'
        )
        assert status == 200, answer
        running.interrupt()
        assert running.ended() == 0
    assert "fetching" not in running.log


@pytest.mark.parametrize("name", ["counts.tar.gz", "counts.zip"])
def test_archives_over_http(up: Start, http_url: str, name: str) -> None:
    """Unpacked, the archive itself gone."""
    assert_fetched_once(up, f"{http_url}/{name}")


def test_objects_of_s3(up: Start) -> None:
    """Those under a prefix, with the credentials of the environment of `torpor up`."""
    server_module = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    import boto3

    server = server_module.ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
        s3 = boto3.client("s3", endpoint_url=url, **keys)
        s3.create_bucket(Bucket="models")
        for file in MODEL.glob("*.*"):
            s3.upload_fileobj(io.BytesIO(file.read_bytes()), "models", f"counts/{file.name}")
        environment = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "k",
            "AWS_SECRET_ACCESS_KEY": "s",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        assert_fetched_once(up, "s3://models/counts", **environment)
    finally:
        server.stop()


def test_what_is_not_there_is_said_in_a_line(up: Start, http_url: str, tmp_path: Path) -> None:
    """With kserve-storage's reason, and nothing stays half fetched."""
    running = up(inference_service(f"{http_url}/none.tar.gz"))
    running.wait_for(r"none\.tar\.gz could not be fetched: RuntimeError: HTTP resource not found")
    assert "Traceback" not in running.log
    running.interrupt()
    assert running.ended() == 0
    assert not [*(tmp_path / "state" / "models").iterdir()]
