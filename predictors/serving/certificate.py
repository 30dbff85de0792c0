"""TLS on the port: a certificate and its key from files, read again when they change, as cert-manager's secrets do.

The handshake chooses HTTP/2 or HTTP/1.1 (ALPN, RFC 7301), and the first bytes then decide as they do without TLS.
"""

import asyncio
import logging
import os
import ssl

from ..settings import SettingError

logger = logging.getLogger("torpor.tls")

_LOOK_S = 60.0
"""The kubelet takes about as long to bring a new secret into a pod."""


class Certificate:
    """A certificate chain and its private key in PEM; `context` is what connections are opened with."""

    def __init__(self, chain_file: str, key_file: str) -> None:
        """Raises SettingError for files that are not a certificate and its key."""
        self._files = chain_file, key_file
        self._changed_s = self._times()
        try:
            self.context = self._load()
        except (OSError, ssl.SSLError) as error:
            raise SettingError(
                f"tls_cert = {chain_file!r}, tls_key = {key_file!r}, must be a certificate and its key in PEM: {error}"
            ) from None

    def watch(self) -> None:
        """Look for changed files from now on."""
        asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def refresh(self) -> None:
        """Use what is in the files for connections that come, if it has changed and is whole."""
        times = self._times()
        if times == self._changed_s:
            return
        try:
            self._load()  # apart first: a key that does not fit would leave the one in use without its certificate
            self.context.load_cert_chain(*self._files)
        except (OSError, ssl.SSLError) as error:
            logger.warning("the certificate has changed and cannot be read, the old one stays: %s", error)
        else:
            self._changed_s = times
            logger.info("the certificate has changed")

    def _look(self) -> None:
        self.refresh()
        self.watch()

    def _times(self) -> tuple[float, ...]:
        try:
            return tuple(os.stat(file).st_mtime for file in self._files)
        except OSError:
            return ()

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2", "http/1.1"])
        context.load_cert_chain(*self._files)
        return context
