"""TLS by real sockets: both HTTP versions and gRPC on one port, and a certificate that changes."""

import os
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import grpc
import pytest
import trustme
from torpor.predictors.protocol.messages import message
from torpor.predictors.serving.certificate import Certificate
from torpor.predictors.settings import SettingError, resolve

REQUEST = b'{"inputs": [{"name": "x", "datatype": "INT64", "shape": [2], "data": [1, 2]}]}'


def write(authority: trustme.CA, folder: Path) -> tuple[str, str]:
    """A new certificate of localhost and its key, in the folder's two files."""
    issued = authority.issue_cert("localhost", "127.0.0.1")
    chain, key = folder / "tls.crt", folder / "tls.key"
    chain.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    return str(chain), str(key)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module", params=["1", "2"], ids=["one process", "two processes"])
def secure(request: pytest.FixtureRequest, serve, authority, tmp_path_factory):
    chain, key = write(authority, tmp_path_factory.mktemp("tls"))
    flags = ("--tls-cert", "--tls-key") if request.param == "1" else ("--ssl_certfile", "--ssl_keyfile")  # KServe's
    return serve("echo", flags[0], chain, flags[1], key, "--processes", request.param)


def trusting(authority: trustme.CA, *protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


def test_both_http_versions_speak_tls(connect, secure, authority) -> None:
    """Requests one after the other, small and large."""
    connection = connect(secure, trusting(authority))
    assert connection.request("GET", "/v2/health/ready").status == 200
    for _ in range(3):
        assert connection.request("POST", "/v2/models/echo/infer", REQUEST).json()["outputs"][0]["data"] == [1, 2]
    rows = str([[1, 2] * 10_000] * 3)
    reply = connection.request("POST", "/v1/models/echo:predict", b'{"instances": %b}' % rows.encode())
    assert reply.json()["predictions"] == [[1, 2] * 10_000] * 3


@pytest.mark.parametrize("offered", [["h2"], ["http/1.1"], ["http/1.1", "h2"], ["spdy/1"], []])
def test_the_handshake_chooses_the_version(secure, authority, offered: list[str]) -> None:
    """HTTP/2 where the caller has it; nothing where it says nothing."""
    context = trusting(authority, *offered)
    with (
        socket.create_connection(("127.0.0.1", secure.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        expected = "h2" if "h2" in offered else "http/1.1" if "http/1.1" in offered else None
        assert connection.selected_alpn_protocol() == expected


def test_an_answer_that_closes_the_connection_ends_it_at_once(secure, authority) -> None:
    """TLS has no half-closed side to wait for."""
    context = trusting(authority)
    with (
        socket.create_connection(("127.0.0.1", secure.port), 20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.settimeout(3)
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.endswith(b'{"live":true}')


def test_grpc_speaks_tls(secure, authority) -> None:
    """grpcio's own channel, which insists on ALPN."""
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    with grpc.secure_channel(f"localhost:{secure.port}", credentials) as channel:
        ready = channel.unary_unary("/inference.GRPCInferenceService/ServerReady", lambda m: m.SerializeToString(),
                                    message("inference.ServerReadyResponse").FromString)  # fmt: skip
        assert ready(message("inference.ServerReadyRequest")()).ready


def test_curl_speaks_both_versions_over_tls(secure, authority, tmp_path) -> None:
    """Another implementation of TLS clients, HTTP/2 by ALPN."""
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for version in ("--http1.1", "--http2"):
        command = ["curl", "-sS", version, "--cacert", str(tmp_path / "ca.pem"), "-w", " %{http_version}"]
        url = f"https://localhost:{secure.port}/v2/health/live"
        done = subprocess.run([*command, url], capture_output=True, text=True, check=True)
        assert done.stdout == '{"live":true} ' + {"--http1.1": "1.1", "--http2": "2"}[version]


def test_a_caller_without_tls_is_not_answered(secure, connect) -> None:
    """And does no harm."""
    with pytest.raises(ConnectionError):
        connect(secure).request("GET", "/v2/health/live")


def serial(certificate: Certificate, authority: trustme.CA) -> str:
    """The serial number that a caller sees, by a handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting(authority).wrap_bio(to_client, to_server, server_hostname="localhost")
    server = certificate.context.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    for _ in range(10):
        for side in [*waiting]:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(side)
    assert not waiting
    peer = client.getpeercert()
    assert peer is not None
    return str(peer["serialNumber"])


def test_a_new_certificate_is_taken_up(authority, tmp_path) -> None:
    """By connections that come after it; one that is not whole yet changes nothing."""
    certificate = Certificate(*write(authority, tmp_path))
    first = serial(certificate, authority)
    certificate.refresh()
    assert serial(certificate, authority) == first
    old_key = (tmp_path / "tls.key").read_bytes()
    write(authority, tmp_path)
    new_key = (tmp_path / "tls.key").read_bytes()
    for key, when in ((b"half of a", 1), (old_key, 2)):
        (tmp_path / "tls.key").write_bytes(key)
        os.utime(tmp_path / "tls.key", (when, when))
        certificate.refresh()
        assert serial(certificate, authority) == first
    (tmp_path / "tls.key").write_bytes(new_key)
    certificate.refresh()
    assert serial(certificate, authority) != first


def test_files_that_are_no_certificate_end_the_start(tmp_path, authority) -> None:
    """With a message that names the settings."""
    chain, key = write(authority, tmp_path)
    for files in ((chain, "nowhere"), (key, key), (chain, chain)):
        with pytest.raises(SettingError, match="must be a certificate and its key in PEM"):
            Certificate(*files)
    with pytest.raises(SettingError, match="tls_cert = 'a', tls_key = '', must be given together"):
        resolve({"tls_cert": "a"}, {}, {})
