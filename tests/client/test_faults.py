"""Answers that are cut, damaged or not what was asked for."""

import random
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from stratoscope.client import Client
from stratoscope.errors import (
    CorruptAnswerError,
    IncompleteAnswerError,
    ModelChangedError,
)
from stratoscope.retries import RetryPolicy
from stratoscope_wire import ActivationsRequest, Capture, Stimulus

if TYPE_CHECKING:
    from tests.client.conftest import FaultServer

TEXTS = ["A church and organ", "a cat", "Zürich and its lake", "x", "the end"]
REQUEST = ActivationsRequest(
    stimuli=[Stimulus(id=f"s{number}", text=text) for number, text in enumerate(TEXTS)],
    capture=Capture(layers=[0, 2], select=["last", "all"]),
)
IDS = [stimulus.id for stimulus in REQUEST.stimuli]


def stimuli_in(batches: list[pa.RecordBatch]) -> list[str]:
    return [stimulus_id for batch in batches for stimulus_id in batch.column(0).unique().to_pylist()]


def n_bytes_of(server: "FaultServer") -> int:
    return sum(len(piece) for piece in server.stream(REQUEST))


@pytest.mark.parametrize("clean", [False, True], ids=["connection-closed", "body-ended"])
def test_a_cut_anywhere_keeps_complete_stimuli_and_asks_only_for_the_others(
    client: Client, server: "FaultServer", clean: bool
) -> None:
    pieces = list(server.stream(REQUEST))
    offsets = random.Random(5).sample(range(n_bytes_of(server)), 25)
    for offset in offsets:
        server.received.clear()
        server.faults.append(server.cut(offset, clean=clean))
        batches = client.fetch(REQUEST)
        ends = [sum(len(piece) for piece in pieces[: count + 2]) for count in range(len(IDS))]
        n_complete = sum(end <= offset for end in ends)
        assert server.posts[0].ids == IDS
        assert [post.ids for post in server.posts[1:]] == ([IDS[n_complete:]] if n_complete < len(IDS) else [])
        assert sorted(stimuli_in(batches)) == IDS


def test_what_is_put_together_after_cuts_equals_an_undisturbed_answer(client: Client, server: "FaultServer") -> None:
    undisturbed = pa.Table.from_batches(client.fetch(REQUEST)).replace_schema_metadata(None)
    server.faults.extend([server.cut_after(2), server.cut_after(0), server.cut_after(1)])
    server.received.clear()
    disturbed = pa.Table.from_batches(client.fetch(REQUEST)).replace_schema_metadata(None)
    assert [len(post.ids) for post in server.posts] == [5, 3, 3, 2]
    assert disturbed.equals(undisturbed)


def test_every_cut_brings_progress_so_any_number_of_them_is_survived(
    client: Client, server: "FaultServer", pauses: list[float]
) -> None:
    stimuli = [Stimulus(id=str(number), text=f"text {number}") for number in range(12)]
    server.always = server.cut_after(1)
    batches = client.fetch(ActivationsRequest(stimuli=stimuli))
    assert len(pauses) == 11 > RetryPolicy(4).max_retries
    assert len(stimuli_in(batches)) == 12


def test_a_failure_that_the_server_calls_retryable_is_tried_again(client: Client, server: "FaultServer") -> None:
    server.faults.append(server.record(3, retryable=True))
    assert sorted(stimuli_in(client.fetch(REQUEST))) == IDS
    assert [post.ids for post in server.posts] == [IDS, IDS[3:]]


def test_a_failure_that_the_server_calls_final_ends_the_request_and_keeps_what_came(
    client: Client, server: "FaultServer"
) -> None:
    server.faults.append(server.record(3, retryable=False))
    fetched = client.try_fetch(REQUEST)
    assert stimuli_in(fetched.batches) == IDS[:3]
    assert fetched.missing == tuple(IDS[3:])
    assert isinstance(fetched.error, IncompleteAnswerError)
    assert "engine_failed" in str(fetched.error)
    assert fetched.error.request_id == "r-1"
    assert len(server.posts) == 1


def test_no_flipped_bit_is_ever_taken_for_data(client: Client, server: "FaultServer") -> None:
    truth = pa.Table.from_batches(client.fetch(REQUEST)).replace_schema_metadata(None)
    generator = random.Random(11)
    outcomes = []
    for _ in range(60):
        bit = generator.randrange(8 * n_bytes_of(server))

        def flip(body: bytes, bit: int = bit) -> bytes:
            return body[: bit // 8] + bytes([body[bit // 8] ^ (1 << bit % 8)]) + body[bit // 8 + 1 :]

        server.faults.append(server.altered(flip))
        fetched = client.try_fetch(REQUEST)
        server.faults.clear()
        outcomes.append(type(fetched.error))
        if fetched.error is None:
            assert pa.Table.from_batches(fetched.batches).replace_schema_metadata(None).equals(truth)
        else:
            assert isinstance(fetched.error, CorruptAnswerError)
            assert fetched.batches == []
    assert CorruptAnswerError in outcomes


def test_a_corrupt_answer_is_not_retried(client: Client, server: "FaultServer", pauses: list[float]) -> None:
    half = len(b"".join(list(server.stream(REQUEST))[:4]))
    server.faults.append(server.altered(lambda body: body[: half - 8] + b"\xff" + body[half - 7 :]))
    with pytest.raises(CorruptAnswerError, match=r"damaged.*request r-1"):
        client.fetch(REQUEST)
    assert (len(server.posts), pauses) == (1, [])


def test_another_model_is_noticed_and_not_retried(client: Client, server: "FaultServer", pauses: list[float]) -> None:
    before = client.model()
    server.card = server.make_card(revision="1")
    assert server.card.fingerprint != before.fingerprint
    with pytest.raises(ModelChangedError, match="another model answered"):
        client.fetch(REQUEST)
    server.faults.append(server.status(409, "fingerprint_mismatch"))
    with pytest.raises(ModelChangedError):
        client.fetch(REQUEST)
    assert (len(server.posts), pauses) == (2, [])
    assert {post.headers["x-fingerprint"] for post in server.posts} == {before.fingerprint}


def test_an_answer_longer_than_announced_is_cut_off(client: Client, server: "FaultServer") -> None:
    sent = []

    def endless(handler: object, body: bytes) -> None:
        handler.begin_stream()  # type: ignore[attr-defined]
        handler.send_chunk(body)  # type: ignore[attr-defined]
        try:
            for _ in range(200):
                handler.send_chunk(b"\0" * (1 << 20))  # type: ignore[attr-defined]
                sent.append(1)
        except OSError:
            handler.close_connection = True  # type: ignore[attr-defined]

    server.faults.append(endless)
    with pytest.raises(CorruptAnswerError, match="bytes follow the stream's end"):
        client.fetch(REQUEST)
    assert len(sent) < 100


def test_an_answer_of_another_kind_is_not_decoded(client: Client, server: "FaultServer") -> None:
    server.faults.append(server.altered(lambda body: body, "text/html; charset=utf-8"))
    with pytest.raises(CorruptAnswerError, match="text/html"):
        client.fetch(REQUEST)
