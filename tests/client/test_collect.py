"""Collecting runs: everything is fetched once, whatever happens on the way."""

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratoscope.client import Client
from stratoscope.collection import CollectSettings, Progress, collect, missing
from stratoscope.errors import (
    ConfigurationError,
    InvalidRequestError,
    ServerLostError,
    StimulusRefusedError,
)
from stratoscope.planning import plan_collection
from stratoscope.stimuli import StimulusTable
from stratoscope.store.ledger import ShardRecord, StimulusRecord
from stratoscope.store.run import Run
from stratoscope.store.writer import RunWriter
from stratoscope_wire.request import Dtype

if TYPE_CHECKING:
    from tests.client.conftest import FaultServer

N = 30
SMALL = CollectSettings(request_bytes=150, shard_bytes=600)
"""Sizes at which a few stimuli make a request and a few requests make a shard."""


def make_table(n: int = N, **changes: str) -> StimulusTable:
    rows = [{"id": f"s{k}", "text": f"stimulus number {k}", "label": k % 2, "group": f"g{k % 5}"} for k in range(n)]
    return StimulusTable.from_frame(
        pl.DataFrame([row | {"text": changes.get(str(row["id"]), row["text"])} for row in rows])
    )


def test_a_collected_run_holds_every_value(client: Client, server: "FaultServer", tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    counts = collect(
        make_table(),
        tmp_path / "run",
        client,
        sites=["embed", "resid_post"],
        settings=SMALL,
        progress=lambda progress: seen.append((progress.fetched, progress.committed)),
    )
    assert (counts.total, counts.already_there, counts.fetched, counts.committed) == (N, 0, N, N)
    assert counts.is_complete
    assert counts.requests == len(server.posts) > 5
    assert counts.shards > 3
    assert seen == sorted(seen)
    assert seen[-1] == (N, N)
    server.check_run(tmp_path / "run", make_table())


def test_half_the_bytes_are_asked_for_when_nothing_is_lost_by_it(
    client: Client, server: "FaultServer", tmp_path: Path
) -> None:
    assert server.card.dtype == "bfloat16"
    collect(make_table(2), tmp_path / "narrow", client)
    collect(make_table(2), tmp_path / "pooled", client, select=["last", "mean"])
    assert [post.request.dtype for post in server.posts] == ["bfloat16", "float32"]


def test_a_second_run_of_the_same_command_asks_for_nothing(
    client: Client, server: "FaultServer", tmp_path: Path
) -> None:
    collect(make_table(), tmp_path, client)
    n_posts = len(server.posts)
    assert n_posts
    again = collect(make_table(), tmp_path, client)
    assert len(server.posts) == n_posts
    assert (again.already_there, again.fetched, again.shards) == (N, 0, 0)
    assert again.is_complete


def test_only_what_is_missing_is_asked_for(client: Client, server: "FaultServer", tmp_path: Path) -> None:
    collect(make_table(10), tmp_path, client)
    server.received.clear()
    collect(make_table(N), tmp_path, client)
    assert [name for post in server.posts for name in post.ids] == [f"s{k}" for k in range(10, N)]
    server.check_run(tmp_path, make_table(N))


def test_labels_and_order_follow_the_table_without_fetching(
    client: Client, server: "FaultServer", tmp_path: Path
) -> None:
    collect(make_table(), tmp_path, client)
    server.received.clear()
    table = make_table()
    fields = table.fields.with_columns(pl.lit("new").alias("label"))
    reversed_table = StimulusTable(table.stimuli[::-1], fields[::-1])
    collect(reversed_table, tmp_path, client)
    assert server.posts == []
    assert Run.open(tmp_path).stimuli()["label"].unique().to_list() == ["new"]
    server.check_run(tmp_path, reversed_table)


def test_cuts_cost_nothing_but_time(client: Client, server: "FaultServer", tmp_path: Path) -> None:
    for n_bytes in (10, 900, 2000, 2400):
        server.faults.append(server.cut(n_bytes))
    server.faults.extend([server.cut_after(1), server.record(2, retryable=True), server.status(503)])
    counts = collect(make_table(), tmp_path, client, settings=SMALL)
    assert server.faults == type(server.faults)()
    assert counts.requests == len(server.posts) > 10
    server.check_run(tmp_path, make_table())


def test_a_lost_server_ends_collection_and_the_same_command_goes_on(server: "FaultServer", tmp_path: Path) -> None:
    with Client(server.url, max_retries=0, timeout=5) as client:
        client.model()
        client.limits()
        server.faults.extend([server.cut_after(3), server.cut_after(2)])
        server.always = server.status(503)
        with pytest.raises(ServerLostError, match=r"3 requests in a row failed; 5 stimuli were fetched"):
            collect(make_table(), tmp_path, client, concurrency=1)
        assert len(Run.open(tmp_path).missing) == N - 5
        assert "the server says 503" in str(Run.open(tmp_path).missing)
        server.always = None
        server.received.clear()
        counts = collect(make_table(), tmp_path, client)
    assert (counts.already_there, counts.fetched) == (5, N - 5)
    assert sum(len(post.ids) for post in server.posts) == N - 5
    server.check_run(tmp_path, make_table())


def test_a_refused_stimulus_stops_collection_by_name(client: Client, tmp_path: Path) -> None:
    # Asked last.
    table = make_table(s7="text that is REFUSED")
    with pytest.raises(StimulusRefusedError, match="refuses stimulus 's7'") as caught:
        collect(table, tmp_path, client, settings=SMALL, concurrency=1)
    assert caught.value.stimulus_ids == ("s7",)
    assert 0 < len(Run.open(tmp_path, allow_incomplete=True).stimuli()) < N


@pytest.mark.parametrize("is_changed", [True, False], ids=["changed", "left-out"])
def test_a_refused_stimulus_may_be_changed_or_left_out_afterwards(
    client: Client, server: "FaultServer", tmp_path: Path, is_changed: bool
) -> None:
    with pytest.raises(StimulusRefusedError):
        collect(make_table(s7="REFUSED text"), tmp_path, client, settings=SMALL, concurrency=1)
    table = make_table(s7="better text")
    if not is_changed:
        kept = pl.Series([stimulus.id != "s7" for stimulus in table.stimuli])
        table = StimulusTable(tuple(s for s in table.stimuli if s.id != "s7"), table.fields.filter(kept))
    assert collect(table, tmp_path, client).is_complete
    server.check_run(tmp_path, table)


def test_a_refused_stimulus_can_be_skipped_and_is_remembered(
    client: Client, server: "FaultServer", tmp_path: Path
) -> None:
    table = make_table(s7="REFUSED text", s8="REFUSED as well")
    settings = CollectSettings(on_refusal="skip")
    counts = collect(table, tmp_path, client, settings=settings)
    assert (counts.fetched, counts.failed, counts.is_complete) == (N - 2, 2, False)
    run = Run.open(tmp_path, allow_incomplete=True)
    assert list(run.missing) == ["s7", "s8"]
    assert "is refused" in str(run.missing["s7"])
    kept = StimulusTable(tuple(s for s in table.stimuli if s.id not in run.missing), pl.DataFrame())
    assert run.stimuli()["id"].to_list() == list(kept.ids)
    truth = np.stack([server.truth(stimulus, run.columns[1]) for stimulus in kept.stimuli])
    np.testing.assert_array_equal(run.activations()["resid_post", 1], truth)


def test_a_stimulus_too_large_on_its_own_is_refused_by_name(
    client: Client, server: "FaultServer", tmp_path: Path
) -> None:
    client.limits()
    server.limits = server.default_limits(max_tokens_per_request=60)
    table = make_table(s3="long " * 20)
    with pytest.raises(StimulusRefusedError, match="'s3'"):
        collect(table, tmp_path, client)
    assert ["s3"] in [post.ids for post in server.posts]


@pytest.mark.parametrize("status", [400, 401, 404])
def test_an_error_that_concerns_every_stimulus_stops_at_once(
    client: Client, server: "FaultServer", tmp_path: Path, status: int
) -> None:
    server.always = server.status(status)
    with pytest.raises(Exception, match=f"the server says {status}"):
        collect(make_table(), tmp_path, client, settings=SMALL, concurrency=1)
    assert len(server.posts) == 1


def test_a_run_can_be_read_while_it_is_written(client: Client, server: "FaultServer", tmp_path: Path) -> None:
    seen: list[int] = []

    def read(progress: Progress) -> None:
        run = Run.open(tmp_path, allow_incomplete=True)
        done = run.stimuli()["id"].to_list()
        assert len(done) == progress.committed
        values = run.activations()["resid_post", 0]
        texts = {stimulus.id: stimulus for stimulus in make_table().stimuli}
        for name, row in zip(done, values, strict=True):
            np.testing.assert_array_equal(row, server.truth(texts[name], run.columns[0]))
        seen.append(len(done))

    collect(make_table(), tmp_path, client, settings=SMALL, progress=read)
    assert len(set(seen)) > 3


def test_an_interrupt_commits_what_was_verified(client: Client, server: "FaultServer", tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.fetched >= 10 and not progress.committed:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(make_table(), tmp_path, client, settings=CollectSettings(request_bytes=150), progress=interrupt)
    run = Run.open(tmp_path, allow_incomplete=True)
    n_done = len(run.stimuli())
    assert 10 <= n_done < N
    server.received.clear()
    assert collect(make_table(), tmp_path, client).already_there == n_done
    server.check_run(tmp_path, make_table())


@pytest.mark.parametrize("n_signals", [1, 2])
def test_an_interrupt_in_the_middle_of_a_commit_waits_for_it_and_a_second_one_does_not(
    client: Client,
    server: "FaultServer",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    n_signals: int,
) -> None:
    # Whoever started the tests in the background may have let them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    handler = signal.getsignal(signal.SIGINT)
    commit = RunWriter.commit
    sent: list[int] = []

    def interrupted(writer: RunWriter, batches: list[tuple[pa.RecordBatch, Dtype]]) -> ShardRecord:
        if not sent:
            for _ in range(n_signals):
                sent.append(1)
                signal.raise_signal(signal.SIGINT)
        return commit(writer, batches)

    monkeypatch.setattr(RunWriter, "commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(make_table(), tmp_path, client, settings=SMALL)
    assert len(sent) == n_signals
    assert signal.getsignal(signal.SIGINT) is handler
    run = Run.open(tmp_path, allow_incomplete=True)
    assert (len(run.stimuli()) > 0) == (n_signals == 1)
    assert run.missing
    collect(make_table(), tmp_path, client)
    server.check_run(tmp_path, make_table())


def test_a_span_that_a_stimulus_lacks_is_reported_before_anything_is_made(client: Client, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="'s0' has no span 'noun'"):
        collect(make_table(), tmp_path / "run", client, select=["noun:last"])
    with pytest.raises(ConfigurationError, match="concurrency is 0"):
        collect(make_table(), tmp_path / "run", client, concurrency=0)
    assert not (tmp_path / "run").exists()


def test_a_plan_says_what_a_collection_takes(
    start_server: Callable[..., AbstractContextManager[str]], tmp_path: Path
) -> None:
    with start_server(max_stimuli=4) as url, Client(url) as client:
        plan = plan_collection(make_table(10), client, select=["all"])
        counts = collect(make_table(10), tmp_path, client, select=["all"])
    run = Run.open(tmp_path)
    assert (plan.n_stimuli, plan.n_requests) == (10, counts.requests)
    assert plan.n_tokens == plan.n_rows == run.counts().sum()
    assert plan.disk_bytes == sum(np.concatenate(arrays).nbytes for arrays in run.tokens("all").values())


@given(st.lists(st.tuples(st.uuids(), st.sampled_from(["todo", "done", "failed"])), unique_by=lambda pair: pair[0]))
def test_missing_is_wanted_less_done(pairs: list[tuple[object, str]]) -> None:
    records = [
        StimulusRecord(str(name), k, "", f'{{"id": "{name}", "text": "x"}}', "{}", state, None, None, None, 0, None)
        for k, (name, state) in enumerate(pairs)
    ]
    left = [stimulus.id for stimulus in missing(records)]
    assert set(left) | {str(name) for name, state in pairs if state == "done"} == {str(name) for name, _ in pairs}
    assert left == [str(name) for name, state in pairs if state != "done"]


def test_a_real_server_is_collected_from(
    start_server: Callable[..., AbstractContextManager[str]], tmp_path: Path
) -> None:
    with start_server(max_stimuli=4) as url, Client(url) as client:
        counts = collect(make_table(), tmp_path, client, sites=["embed", "resid_post"], settings=SMALL)
        direct = client.activations(make_table().stimuli, sites=["embed", "resid_post"])
    assert counts.is_complete
    run = Run.open(tmp_path)
    assert list(run.activations()) == list(direct)
    for key, values in run.activations().items():
        np.testing.assert_allclose(values, np.asarray(direct[key]), rtol=1e-5, atol=1e-6)
