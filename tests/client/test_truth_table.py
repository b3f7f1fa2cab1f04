"""The three ends of an answer (HTTP's, Arrow's, the footer) and what the client makes of each combination."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from stratoscope.client import Client
from stratoscope.errors import CorruptAnswerError, IncompleteAnswerError, StratoscopeError
from stratoscope_wire import ActivationsRequest, Stimulus
from stratoscope_wire.encoder import END_OF_STREAM, POISON

if TYPE_CHECKING:
    from tests.client.conftest import Fault, FaultServer, Handler

REQUEST = ActivationsRequest(stimuli=[Stimulus(id=f"s{number}", text=f"text {number}") for number in range(4)])
IDS = [stimulus.id for stimulus in REQUEST.stimuli]


@dataclass(frozen=True)
class Row:
    """A way for an answer to end, and the verdict.

    Attributes
    ----------
    zero_chunk, end_of_stream
        Whether HTTP and Arrow say that it is complete.
    footer
        ``ok``, none, a lie, or an error that is worth another attempt or not.
    kept
        Stimuli that are good in it.
    is_final
        Whether nothing is asked for again.
    error
        What is raised where nothing is asked for again and something is missing.
    """

    zero_chunk: bool
    end_of_stream: bool
    footer: str
    kept: list[str]
    is_final: bool
    error: type[StratoscopeError] | None = None


TABLE = {
    "all three agree": Row(True, True, "ok", IDS, True),
    "a swallowed error": Row(True, True, "none", IDS[:2], False),
    "cut at a batch by a proxy that ends the body": Row(True, False, "none", IDS[:2], False),
    "complete, but the connection broke": Row(False, True, "ok", IDS, True),
    "complete, but Arrow's end is missing": Row(False, False, "ok", IDS, False),
    "a footer that differs": Row(True, True, "lie", [], True, CorruptAnswerError),
    "a footer that differs on a broken connection": Row(False, True, "lie", [], True, CorruptAnswerError),
    "a failure that may pass": Row(False, False, "retryable", IDS[:2], False),
    "a failure that may pass, through a proxy": Row(True, False, "retryable", IDS[:2], False),
    "a failure for good": Row(False, False, "final", IDS[:2], True, IncompleteAnswerError),
    "a cut": Row(False, False, "none", IDS[:2], False),
}


def answer(server: "FaultServer", row: Row) -> bytes:
    """Build what the server sends."""
    schema, *batches, end = server.stream(REQUEST)
    assert end.endswith(END_OF_STREAM)
    if row.footer == "ok":
        body = b"".join([schema, *batches, end.removesuffix(END_OF_STREAM)])
    elif row.footer == "lie":
        # One batch less than the footer states.
        body = b"".join([schema, *batches[:-1], end.removesuffix(END_OF_STREAM)])
    elif row.footer == "none":
        body = b"".join([schema, *batches[:2]])
    else:
        failed = b"".join(server.stream(REQUEST, 2, retryable=row.footer == "retryable"))
        assert failed.endswith(POISON)
        return failed
    return body + END_OF_STREAM * row.end_of_stream


def ending(body: bytes, row: Row) -> "Fault":
    def fault(handler: "Handler", _: bytes) -> None:
        if row.zero_chunk:
            handler.send_stream(body)
            return
        handler.begin_stream()
        handler.send_chunk(body)
        handler.break_off()

    return fault


@pytest.mark.parametrize("name", TABLE)
def test_each_way_to_end_has_its_verdict(
    name: str, client: Client, server: "FaultServer", caplog: pytest.LogCaptureFixture
) -> None:
    row = TABLE[name]
    server.faults.append(ending(answer(server, row), row))
    with caplog.at_level(logging.WARNING, "stratoscope"):
        fetched = client.try_fetch(REQUEST)
    came = [name for batch in fetched.batches for name in batch.column("stimulus_id").unique().to_pylist()]
    left = [name for name in IDS if name not in row.kept]
    if row.is_final:
        assert len(server.posts) == 1
        assert came == row.kept
        assert (type(fetched.error) if fetched.error else None) is row.error
        assert list(fetched.missing) == left
    else:
        assert [post.ids for post in server.posts[1:]] == ([left] if left else [])
        assert (sorted(came), fetched.error) == (IDS, None)
    odd = [record for record in caplog.records if "was complete, but its connection broke" in record.getMessage()]
    assert len(odd) == (name == "complete, but the connection broke")
