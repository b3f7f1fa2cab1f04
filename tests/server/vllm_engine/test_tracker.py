"""Rows by absolute position: each comes once, whatever the engine does with the prompt, or the prompt is given up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratoscope_server.engines.protocol import Prompt, RowSpec
from stratoscope_server.engines.vllm.ticket import Ticket, row_fields, serial_of
from stratoscope_server.engines.vllm.tracker import HoleError, Tracker


def tracker_of(n_tokens: int, *specs: tuple[list[int], bool]) -> Tracker:
    rows = tuple(RowSpec(f"r{i}", np.array(sorted(p), np.int32), pooled) for i, (p, pooled) in enumerate(specs))
    prompt = Prompt("s", np.arange(n_tokens, dtype=np.int32), rows)
    ticket = Ticket(
        serial=1, columns=b"", dtype="float32", rotation=0, offset=0, n_rows=99, first_row=0, **row_fields(prompt)
    )
    return Tracker(ticket)


@st.composite
def journeys(draw: st.DrawFn) -> tuple[int, list[tuple[list[int], bool]], list[tuple[int, int]]]:
    """A prompt, its selectors, and steps that compute it in chunks with preemptions in between."""
    n_tokens = draw(st.integers(1, 40))
    position = st.integers(0, n_tokens - 1)
    selections = st.lists(st.tuples(st.lists(position, min_size=1, unique=True), st.booleans()), min_size=1, max_size=4)
    steps = []
    reached = 0
    while reached < n_tokens:
        # After a preemption the prompt starts again, at its beginning or behind what the cache still has.
        start = draw(st.one_of(st.just(reached), st.integers(0, reached)))
        stop = draw(st.integers(start + 1, n_tokens))
        steps.append((start, stop))
        reached = max(reached, stop)
    return n_tokens, draw(selections), steps


@given(journeys())
def test_every_row_comes_once_whatever_the_chunks_and_preemptions(
    journey: tuple[int, list[tuple[list[int], bool]], list[tuple[int, int]]],
) -> None:
    n_tokens, specs, steps = journey
    tracker = tracker_of(n_tokens, *specs)
    taken: list[tuple[int, int]] = []
    pooled: dict[int, list[int]] = {}
    done: list[int] = []
    for start, stop in steps:
        share = tracker.take(start, stop)
        assert all(start <= position < stop for position in share.positions.tolist())
        taken += zip(share.rows.tolist(), share.positions.tolist(), strict=True)
        for part in share.pooled:
            pooled.setdefault(part.index, []).extend(part.positions.tolist())
            done += [part.index] * part.done
    assert tracker.is_complete
    expected: list[tuple[int, int]] = []
    row = 0
    means: list[list[int]] = []
    for positions, is_pooled in specs:
        if is_pooled:
            means.append(sorted(positions))
            row += 1
        else:
            expected += zip(range(row, row + len(positions)), sorted(positions), strict=True)
            row += len(positions)
    assert sorted(taken) == expected
    assert pooled == dict(enumerate(means))
    assert sorted(done) == list(range(len(means)))


def test_a_last_row_under_chunked_prefill_is_one_row() -> None:
    tracker = tracker_of(10, ([9], False))
    counts = [len(tracker.take(start, start + 4).positions) for start in (0, 4, 8)]
    assert counts == [0, 0, 1]


def test_a_step_after_the_end_gives_nothing() -> None:
    tracker = tracker_of(4, ([0, 1, 2, 3], False), ([0, 3], True))
    tracker.take(0, 4)
    share = tracker.take(4, 5)
    assert not len(share.positions)
    assert not share.pooled


@pytest.mark.parametrize("pooled", [False, True])
def test_a_wanted_position_that_was_never_computed_is_an_error(pooled: bool) -> None:
    tracker = tracker_of(10, ([2, 9], pooled))
    tracker.take(0, 2)
    with pytest.raises(HoleError, match=r"position 2 was never computed: positions up to 2 had come.* began at 4"):
        tracker.take(4, 10)


def test_positions_that_nobody_wants_may_be_skipped() -> None:
    tracker = tracker_of(10, ([9], False))
    assert tracker.take(8, 10).positions.tolist() == [9]


@pytest.mark.parametrize(("request_id", "serial"), [("17-0a1b2c3d", 17), ("17", 17), ("canary-3-0a", -1), ("", -1)])
def test_a_serial_is_read_from_a_request_id(request_id: str, serial: int) -> None:
    assert serial_of(request_id) == serial


def test_a_ticket_survives_its_journey() -> None:
    ticket = tracker_of(10, ([0, 2], False), ([1, 3], True)).ticket
    fields = ticket.to_extra_args()["stratoscope"]
    # What msgpack makes of tuples.
    fields = {**fields, "pooled": [list(mean) for mean in fields["pooled"]]}
    assert Ticket.from_extra_args({"stratoscope": fields}) == ticket
    assert Ticket.from_extra_args(None) is None
