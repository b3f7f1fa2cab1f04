"""Where the server is, how to prove who asks, and how long to wait: from arguments and environment."""

import ipaddress
import os
import ssl
import warnings
from dataclasses import dataclass, field
from typing import Final

import httpx2

from stratoscope.errors import ConfigurationError
from stratoscope_wire import __version__

BASE_URL_VARIABLE: Final = "STRATOSCOPE_BASE_URL"
API_KEY_VARIABLE: Final = "STRATOSCOPE_API_KEY"
CA_FILE_VARIABLES: Final = ("STRATOSCOPE_CA_FILE", "SSL_CERT_FILE")
DEFAULT_BASE_URL: Final = "http://127.0.0.1:8000"

CONNECT_TIMEOUT_S: Final = 10.0
READ_TIMEOUT_S: Final = 120.0
"""Longest silence between two bytes; the first one may have to wait in the server's queue."""


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach a server.

    Attributes
    ----------
    base_url
        Without a trailing slash.
    api_key
        Kept out of `repr`.
    timeout
        Seconds for connecting, and of silence between two bytes.
    """

    base_url: str
    api_key: str | None = field(repr=False)
    timeout: httpx2.Timeout

    @classmethod
    def of(cls, base_url: str | None, api_key: str | None, timeout: float | httpx2.Timeout | None) -> "Connection":
        """Resolve arguments, then environment, then defaults.

        Parameters
        ----------
        timeout
            Longest silence in seconds, or a full `httpx2.Timeout`.

        Raises
        ------
        ConfigurationError
            If the address is no plain http(s) address or the key could not be sent in a header.
        """
        address = base_url or os.environ.get(BASE_URL_VARIABLE) or DEFAULT_BASE_URL
        key = api_key or os.environ.get(API_KEY_VARIABLE) or None
        url = _checked_url(address)
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigurationError(f"the API key has characters that no header may carry; check {API_KEY_VARIABLE}")
        if key is not None and url.scheme == "http" and not _is_private(url.host):
            warnings.warn(f"the API key travels unencrypted to {url.host}; use https", UserWarning, stacklevel=4)
        return cls(str(url).rstrip("/"), key, _timeout(timeout))

    @property
    def trust(self) -> ssl.SSLContext | bool:
        """Whose certificates are trusted: those of the file that the environment names, else the system's.

        Raises
        ------
        ConfigurationError
            If the file cannot be used.
        """
        name = next((name for name in CA_FILE_VARIABLES if os.environ.get(name)), None)
        if name is None:
            return True
        try:
            return ssl.create_default_context(cafile=os.environ[name])
        except OSError as error:
            raise ConfigurationError(
                f"{name}={os.environ[name]} holds no certificates that can be used ({error}); give a PEM file"
            ) from None

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this very machine."""
        return _is_loopback(httpx2.URL(self.base_url).host)

    @property
    def uses_proxies(self) -> bool:
        """Whether proxies named in the environment apply; never for this very machine, whatever `NO_PROXY` says."""
        return not self.is_loopback

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        headers = {"User-Agent": f"stratoscope/{__version__}", "Accept-Encoding": "identity"}
        return headers if self.api_key is None else headers | {"Authorization": f"Bearer {self.api_key}"}


def _checked_url(address: str) -> httpx2.URL:
    try:
        url = httpx2.URL(address)
    except httpx2.InvalidURL as error:
        raise ConfigurationError(f"the server's address is not a URL: {error}") from None
    if url.userinfo:
        raise ConfigurationError(f"the server's address holds a password; put the key in {API_KEY_VARIABLE} instead")
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise ConfigurationError(f"{address!r} is not a server's address; expected for example {DEFAULT_BASE_URL!r}")
    return url


def _timeout(timeout: float | httpx2.Timeout | None) -> httpx2.Timeout:
    if isinstance(timeout, httpx2.Timeout):
        return timeout
    return httpx2.Timeout(READ_TIMEOUT_S if timeout is None else timeout, connect=CONNECT_TIMEOUT_S)


def _is_private(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return _is_loopback(host) or host.endswith((".local", ".internal")) or "." not in host
    return address.is_private or address.is_link_local


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
