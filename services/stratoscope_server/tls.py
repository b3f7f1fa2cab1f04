"""TLS: the server's certificate and key, checked before anything else is started."""

import ssl
from pathlib import Path

from stratoscope_server.exposure import warn_if_exposed


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a context for TLS 1.2 and later.

    Parameters
    ----------
    certificate
        PEM file of the server's certificate, followed by those of the authorities between it and the root.
    key
        PEM file of its private key, without a passphrase.

    Raises
    ------
    ValueError
        If a file cannot be used, or one does not belong to the other; the message names it.
    """
    for path in (certificate, key):
        if not path.is_file():
            raise ValueError(f"{path}, named for TLS, is no file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password=lambda: _refuse_passphrase(key))
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or "not a PEM file"
        raise ValueError(
            f"TLS cannot be served with the certificate {certificate} and the key {key}: {reason}; both must be PEM "
            "files, and the key that of the certificate"
        ) from None
    warn_if_exposed(key)
    return context


def _refuse_passphrase(key: Path) -> str:
    # Without this, OpenSSL would ask for it on the terminal and the server would wait for ever.
    raise ValueError(
        f"the TLS key {key} has a passphrase; nobody is there to type it: openssl pkey -in {key} -out FILE"
    )
