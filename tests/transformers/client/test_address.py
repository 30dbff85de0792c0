"""Where a predictor is, as text."""

import pytest
from torpor.transformers.client import PredictorClient
from torpor.transformers.client.address import Address


@pytest.mark.parametrize(
    ("text", "address", "authority"),
    [
        ("embedder:8080", Address("embedder", 8080), "embedder:8080"),
        ("embedder", Address("embedder", 80), "embedder"),
        ("http://a.ns.svc", Address("a.ns.svc", 80), "a.ns.svc"),
        ("https://a/pre/fix/", Address("a", 443, "", "/pre/fix", True), "a"),
        ("https://a:8443", Address("a", 8443, "", "", True), "a:8443"),
        ("http://[::1]:81", Address("::1", 81), "[::1]:81"),
        ("unix:/run/p.sock", Address("", 0, "/run/p.sock"), "localhost"),
    ],
)
def test_an_address_is_a_host_a_url_or_a_socket(text: str, address: Address, authority: str) -> None:
    """What KServe passes as predictor host, and the socket of the same pod."""
    assert Address.parse(text) == address
    assert address.authority == authority
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", "ftp://a", "a:b", "a:0", "a:99999", "http://", "http://a?b", "http://u@a", "unix:p.sock", "unix:"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """At once, with the forms that there are."""
    with pytest.raises(ValueError, match=r"address = .*, must"):
        PredictorClient(text, "m")


def test_an_unknown_protocol_is_refused() -> None:
    """KServe's words, and those for v2's two forms."""
    with pytest.raises(ValueError, match="protocol = 'v3', must be one of auto, v1, v2, v2-json, v2-binary, grpc-v2"):
        PredictorClient("a:1", "m", "v3")
    with pytest.raises(ValueError, match="must have no path for grpc-v2"):
        PredictorClient("http://a/prefix", "m", "grpc-v2")
