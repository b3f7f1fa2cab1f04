"""TLS with real certificates: an authority made for the test, a real server process, our own client."""

import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from stratoscope import Client
from stratoscope.errors import APIConnectionError, ConfigurationError
from stratoscope.retries import RetryPolicy
from stratoscope_server.settings import Settings, SettingsError
from stratoscope_server.tls import server_context
from tests.listening import read_address


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(authority: trustme.CA, tmp_path: Path) -> tuple[Path, Path]:
    """Certificate of this machine and its key."""
    return written(authority, tmp_path)


def written(authority: trustme.CA, folder: Path) -> tuple[Path, Path]:
    issued = authority.issue_cert("127.0.0.1", "localhost")
    folder.mkdir(exist_ok=True)
    certificate, key = folder / "server.pem", folder / "server.key"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    key.chmod(0o600)
    return certificate, key


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path) -> Path:
    """The authority's own certificate, as a client is given it."""
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(path)
    return path


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "stratoscope_server", "--engine", "synthetic", *map(str, args)]


def environ() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("STRATOSCOPE_")}


@contextmanager
def serving(certificate: Path, key: Path) -> Iterator[str]:
    args = command("--port", "0", "--tls-certificate", certificate, "--tls-key", key)
    with subprocess.Popen(args, stderr=subprocess.PIPE, text=True, env=environ()) as process:
        url, _ = read_address(process)
        try:
            assert url.startswith("https://127.0.0.1:")
            yield url
        finally:
            process.terminate()
            process.communicate(timeout=30)


def ask(url: str) -> list[float]:
    with Client(url, max_retries=RetryPolicy(max_retries=3)) as client:
        client.ready()
        return list(client.activations(["A church"], layers=[3])["resid_post", 3][0])


@pytest.mark.parametrize("variable", ["STRATOSCOPE_CA_FILE", "SSL_CERT_FILE"])
def test_a_client_that_is_given_the_authority_reads_activations_over_tls(
    variable: str, files: tuple[Path, Path], trusted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(trusted))
    with serving(*files) as url:
        assert len(ask(url)) == 64


def test_a_client_that_does_not_know_the_authority_refuses_the_server(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    with serving(*files) as url:
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        for given in (None, str(other)):
            if given is not None:
                monkeypatch.setenv("STRATOSCOPE_CA_FILE", given)
            with (
                Client(url, max_retries=RetryPolicy(max_retries=0)) as client,
                pytest.raises(APIConnectionError, match="CERTIFICATE_VERIFY_FAILED"),
            ):
                client.ready()


def test_a_file_of_authorities_that_holds_none_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (tmp_path / "absent.pem", tmp_path / "empty.pem"):
        if path.name == "empty.pem":
            path.touch()
        monkeypatch.setenv("STRATOSCOPE_CA_FILE", str(path))
        with pytest.raises(ConfigurationError, match=f"STRATOSCOPE_CA_FILE={re.escape(str(path))}"):
            Client("https://127.0.0.1:1")


@contextmanager
def lenient_server(certificate: Path, key: Path) -> Iterator[str]:
    """A server that speaks every version there is, once."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            plain, _ = listener.accept()
            with context.wrap_socket(plain, server_side=True) as encrypted:
                encrypted.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(timeout=10)


def handshake(url: str, trusted: Path, version: ssl.TLSVersion) -> str | None:
    context = ssl.create_default_context(cafile=str(trusted))
    # OpenSSL forbids old versions at its usual level; here the server must be what refuses.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    address = urlsplit(url)
    assert address.port is not None
    with (
        socket.create_connection(("127.0.0.1", address.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted,
    ):
        return encrypted.version()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
def test_tls_1_2_and_1_3_are_spoken_and_nothing_older(files: tuple[Path, Path], trusted: Path) -> None:
    with lenient_server(*files) as url:
        assert handshake(url, trusted, ssl.TLSVersion.TLSv1_1) == "TLSv1.1"
    with serving(*files) as url:
        assert handshake(url, trusted, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        assert handshake(url, trusted, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        for old in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                handshake(url, trusted, old)


def test_one_file_without_the_other_is_refused(files: tuple[Path, Path]) -> None:
    certificate, key = map(str, files)
    with pytest.raises(SettingsError, match="--tls-certificate is given without --tls-key"):
        Settings.from_args(["--tls-certificate", certificate], {})
    with pytest.raises(SettingsError, match="--tls-key is given without --tls-certificate"):
        Settings.from_args(["--tls-key", key], {})
    assert Settings.from_args(["--tls-key", key, "--tls-certificate", certificate], {}).tls_key == files[1]


def test_files_that_cannot_be_used_stop_the_server_by_name(files: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = files
    _, of_another = written(trustme.CA(), tmp_path / "another")
    no_pem = tmp_path / "no.pem"
    no_pem.write_text("not a certificate")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "pkey", "-in", key, "-out", locked, "-aes256", "-passout", "pass:secret-words"], check=True
    )
    faults = {
        "absent.pem, named for TLS, is no file": (tmp_path / "absent.pem", key),
        "no.pem": (no_pem, key),
        "KEY_VALUES_MISMATCH": (certificate, of_another),
        "locked.key has a passphrase": (certificate, locked),
    }
    server_context(certificate, key)
    for words, given in faults.items():
        ended = subprocess.run(
            command("--tls-certificate", given[0], "--tls-key", given[1]),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=environ(),
            stdin=subprocess.DEVNULL,
        )
        assert ended.returncode == 2, ended.stderr
        assert words in ended.stderr
        assert "Traceback" not in ended.stderr
        assert "secret-words" not in ended.stderr
