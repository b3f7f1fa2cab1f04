"""The plan of a step, carried out in plain NumPy, puts every value where it belongs; columns are shared out fairly."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratoscope_server.engines.protocol import Prompt, RowSpec
from stratoscope_server.engines.vllm.layout import ALIGNMENT, Place, column_offsets, split_runs
from stratoscope_server.engines.vllm.step import Scheduled, plan_step
from stratoscope_server.engines.vllm.ticket import Ticket, row_fields
from stratoscope_server.engines.vllm.tracker import Tracker
from stratoscope_wire import Column
from stratoscope_wire.sites import SITES

prompts_strategy = st.lists(
    st.tuples(
        st.integers(1, 12),
        st.lists(st.tuples(st.sets(st.integers(0, 11), min_size=1), st.booleans()), min_size=1, max_size=3),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=6,
)


def make(index: int, n_tokens: int, specs: list[tuple[set[int], bool]], kind: int, first_row: int) -> Tracker:
    rows = tuple(
        RowSpec(f"r{i}", np.array(sorted({p % n_tokens for p in positions}), np.int32), pooled)
        for i, (positions, pooled) in enumerate(specs)
    )
    prompt = Prompt(str(index), np.arange(n_tokens, dtype=np.int32), rows)
    columns = bytes([kind, 0])
    return Tracker(
        Ticket(
            serial=index,
            columns=columns,
            dtype="float32",
            rotation=0,
            offset=kind * 1000,
            n_rows=100,
            first_row=first_row,
            **row_fields(prompt),
        )
    )


@given(prompts_strategy, st.randoms(use_true_random=False), st.integers(1, 9))
def test_a_plan_carried_out_by_hand_gives_every_row_of_every_prompt(
    described: list[tuple[int, list[tuple[set[int], bool]], int]], random: "np.random.Generator", budget: int
) -> None:
    trackers, lengths, first_rows = [], [], []
    row = {0: 0, 1: 0}
    for index, (n_tokens, specs, kind) in enumerate(described):
        trackers.append(make(index, n_tokens, specs, kind, row[kind]))
        first_rows.append(row[kind])
        lengths.append(n_tokens)
        row[kind] += sum(1 if pooled else len({p % n_tokens for p in s}) for s, pooled in specs)
    regions = {kind: np.full(100, np.nan) for kind in (0, 1)}
    sums: dict[tuple[int, int], float] = {}
    computed = [0] * len(trackers)
    while any(c < n for c, n in zip(computed, lengths, strict=True)):
        order = [i for i, (c, n) in enumerate(zip(computed, lengths, strict=True)) if c < n]
        random.shuffle(order)
        scheduled: list[Scheduled] = []
        batch: list[float] = []
        left = budget
        for i in order:
            count = min(left, lengths[i] - computed[i])
            if count:
                scheduled.append(Scheduled(trackers[i], computed[i], count, len(batch)))
                batch += [1000.0 * i + p for p in range(computed[i], computed[i] + count)]
                computed[i] += count
                left -= count
        carry_out(plan_step(scheduled, len(batch)), np.array(batch), regions, sums)
    for i, (n_tokens, specs, kind) in enumerate(described):
        expected: list[float] = []
        for positions, pooled in specs:
            values = [1000.0 * i + p for p in sorted({p % n_tokens for p in positions})]
            expected += [float(np.mean(values))] if pooled else values
        found = regions[kind][first_rows[i] : first_rows[i] + len(expected)]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def carry_out(plan, batch, regions, sums) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    assert plan.n_tokens == len(batch)
    assert not plan.holes
    for gather in plan.gathers:
        assert (np.diff(gather.source) > 0).all(), "rows are staged in their order, each once"
        staged = batch[gather.source]
        for region, delivery in gather.deliveries.items():
            regions[region.offset // 1000][delivery.rows] = staged[delivery.staged]
        begin = 0
        for mean, length in zip(gather.means, gather.pooled_lengths, strict=True):
            key = (mean.serial, mean.index)
            sums[key] = sums.get(key, 0.0) + batch[gather.pooled_source[begin : begin + length]].sum()
            begin += length
            if mean.done:
                regions[mean.region.offset // 1000][mean.row] = sums[key] / mean.n_positions


def columns_of(n_layers: int, d_model: int, heads: int) -> list[Column]:
    return [
        Column(site, layer, heads if site == "heads" else d_model, None)
        for site in SITES
        for layer in ([None] if site in ("embed", "final_norm") else range(n_layers))
    ]


@pytest.mark.parametrize(("n_exits", "heads"), list(product([1, 2, 4], [64, 96])))
def test_every_value_is_copied_by_exactly_one_rank_whatever_the_rotation(n_exits: int, heads: int) -> None:
    columns = columns_of(3, 64, heads)
    for rotation in range(n_exits):
        written = {column.name: np.zeros(column.width, int) for column in columns}
        counts = []
        for rank in range(n_exits):
            place = Place(rank, n_exits, rank, n_exits)
            owned = 0
            for run in split_runs(columns):
                start, width = run.slice(place)
                for index in run.owned(place, rotation):
                    written[columns[index].name][start : start + width] += 1
                    owned += not run.sharded
            counts.append(owned)
        assert all((count == 1).all() for count in written.values())
        assert max(counts) - min(counts) <= 3, "replicated columns are spread evenly, up to one for each run"


def test_rank_r_copies_every_nth_column() -> None:
    columns = columns_of(8, 64, 64)
    run = next(run for run in split_runs(columns) if not run.sharded)
    assert [i % 4 for i in run.owned(Place(3, 4, 3, 4), 0)] == [3] * len(run.owned(Place(3, 4, 3, 4), 0))


def test_where_only_some_ranks_share_memory_with_the_server_those_copy_everything() -> None:
    columns = columns_of(3, 64, 96)
    places = [Place(0, 4, 0, 2), Place(1, 4, 1, 2), Place(2, 4, None, 2), Place(3, 4, None, 2)]
    written = {column.name: 0 for column in columns}
    for place in places:
        for run in split_runs(columns):
            assert run.slice(place) == (0, run.width)
            for index in run.owned(place, 0):
                written[columns[index].name] += 1
    assert set(written.values()) == {1}


@given(st.integers(1, 5), st.integers(1, 70), st.integers(1, 70), st.integers(1, 9), st.sampled_from([2, 4]))
def test_columns_of_a_region_are_aligned_and_do_not_overlap(
    n_layers: int, d_model: int, heads: int, n_rows: int, size: int
) -> None:
    columns = columns_of(n_layers, d_model, heads)
    offsets = column_offsets(columns, n_rows, size)
    assert all(offset % ALIGNMENT == 0 for offset in offsets)
    for column, begin, end in zip(columns, offsets, offsets[1:], strict=False):
        assert begin + n_rows * column.width * size <= end
