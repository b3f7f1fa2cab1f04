"""Asking a server for activations without our client, and looking closely at how the answer ends."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx2
import pyarrow as pa

from stratoscope_wire import ActivationsRequest, Expected, ModelCard, StreamDecoder
from stratoscope_wire.errors import WireError


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended.

    Attributes
    ----------
    status
        Of HTTP; 0 if there was none.
    code, message, retryable, retry_after
        Of the error, in the body or in the stream; empty if there was none.
    whole
        Whether the stream was verified from its first to its last byte, and HTTP agrees.
    n_kept
        Stimuli that may be kept.
    reads_as_broken
        Whether a reader that checks nothing finds out as well.
    seconds
        Until the end.
    """

    status: int = 0
    code: str = ""
    message: str = ""
    retryable: bool = False
    retry_after: int = 0
    whole: bool = False
    n_kept: int = 0
    reads_as_broken: bool = True
    seconds: float = 0.0
    body: bytes = b""

    def __str__(self) -> str:
        fields = (self.status, self.code, self.message, f"whole {self.whole}", f"{self.n_kept} kept")
        return f"{fields} after {self.seconds:.1f} s"


def request_of(n_texts: int, *, words: int = 4, **capture: Any) -> dict[str, Any]:
    """A request for texts of growing length, so that each is a batch of its own where batches are small."""
    texts = [f"{'church ' * words}organ number {index} {'and ' * (index % 7)}" for index in range(n_texts)]
    stimuli = [{"id": f"s{index}", "text": text} for index, text in enumerate(texts)]
    return {"stimuli": stimuli, "capture": {"sites": ["resid_post", "attn_out", "mlp_out"], **capture}}


def expected_by(url: str, request: dict[str, Any]) -> int:
    """Bytes of activations that the server says it would send."""
    answer = httpx2.post(f"{url}/v1/plan", json=request, timeout=60)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["bytes"])


def ask(
    url: str, request: dict[str, Any], on_first: Callable[[], object] = lambda: None, timeout_s: float = 60
) -> Ending:
    """Send a request and read the answer to its end; `on_first` is called when its first bytes are there."""
    card = ModelCard.model_validate(httpx2.get(f"{url}/v1/model", timeout=timeout_s).json())
    began = time.monotonic()
    data, status, headers, ended = b"", 0, httpx2.Headers(), False
    posted = httpx2.stream("POST", f"{url}/v1/activations", json=request, timeout=timeout_s)
    with suppress(httpx2.TransportError), posted as answer:
        status, headers = answer.status_code, answer.headers
        for chunk in answer.iter_raw():
            if not data:
                on_first()
                began = time.monotonic()
            data += chunk
        ended = True
    seconds = time.monotonic() - began
    if status != 200:
        return _refused(status, headers, data, seconds)
    return _verified(data, request, card, ended=ended, seconds=seconds)


def _refused(status: int, headers: httpx2.Headers, data: bytes, seconds: float) -> Ending:
    error: dict[str, Any] = {}
    with suppress(ValueError, KeyError):
        error = httpx2.Response(status, content=data).json()["error"]
    return Ending(
        status=status,
        code=error.get("code", ""),
        message=error.get("message", ""),
        retryable=error.get("retryable", False),
        retry_after=int(headers.get("retry-after", 0)),
        seconds=seconds,
        body=data,
    )


def _verified(data: bytes, request: dict[str, Any], card: ModelCard, *, ended: bool, seconds: float) -> Ending:
    parsed = ActivationsRequest.model_validate(request)
    columns = card.columns(parsed.capture.sites, parsed.capture.layers)
    kept: set[str] = set()
    code, message, retryable = "", "", False
    try:
        for batch in StreamDecoder(data, Expected.of(parsed, columns, card.fingerprint)):
            kept |= set(batch.column(0).to_pylist())
    except WireError as error:
        code, message = getattr(error, "code", type(error).__name__), str(error)
        retryable = getattr(error, "retryable", False)
    return Ending(
        status=200,
        code=code,
        message=message,
        retryable=retryable,
        whole=ended and not code,
        n_kept=len(kept),
        reads_as_broken=_is_broken(data),
        seconds=seconds,
        body=data,
    )


def _is_broken(data: bytes) -> bool:
    try:
        pa.ipc.open_stream(data).read_all()
    except pa.ArrowInvalid:
        return True
    return False
