"""Packing stimuli into requests."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from stratoscope.captures import most_tokens, parse_selector, to_json
from stratoscope.packing import Cost, Recipe, group_under, halve, pack, stimulus_cost
from stratoscope_wire import ActivationsRequest, Capture, Column, Stimulus
from tests.client.conftest import default_limits

LIMITS = default_limits(
    max_body_bytes=2_000,
    max_stimuli=9,
    max_characters_per_text=500,
    max_tokens_per_text=400,
    max_tokens_per_request=1_000,
    max_response_bytes=50_000,
)
COLUMNS = (Column("resid_post", 0, 8, 1), Column("resid_post", 1, 8, 2))
TEXTS = st.lists(st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=300), min_size=1, max_size=40)


def stimuli_of(texts: list[str]) -> list[Stimulus]:
    return [Stimulus(id=str(number), text=text) for number, text in enumerate(texts)]


def exact_bytes(request: ActivationsRequest) -> int:
    """Bytes of the answer if every byte of a text were a token: the worst that tokenizers do."""
    rows = sum(most_tokens(stimulus) if "all" in request.capture.select else 1 for stimulus in request.stimuli)
    return rows * 16 * 4


@given(texts=TEXTS, take=st.sampled_from(["last", "all"]))
def test_requests_hold_every_stimulus_once_and_keep_to_the_limits(texts: list[str], take: str) -> None:
    recipe = Recipe(Capture(select=[parse_selector(take)]), COLUMNS, "float32")
    stimuli = stimuli_of(texts)
    requests = pack(stimuli, recipe, LIMITS)
    asked = [stimulus for request in requests for stimulus in request.stimuli]
    assert sorted(asked, key=lambda stimulus: int(stimulus.id)) == stimuli
    for request in requests:
        assert len(request.stimuli) <= LIMITS.max_stimuli
        if len(request.stimuli) > 1:
            assert len(to_json(request)) <= LIMITS.max_body_bytes
            assert sum(most_tokens(stimulus) for stimulus in request.stimuli) <= LIMITS.max_tokens_per_request
            assert exact_bytes(request) <= LIMITS.max_response_bytes


def test_texts_that_begin_alike_are_asked_together_and_equal_ones_in_their_order() -> None:
    recipe = Recipe(Capture(), COLUMNS, "float32")
    texts = [f"{first} and {second}" for second in ("z", "y") for first in ("a cat", "a dog", "an owl")]
    requests = pack(stimuli_of([*texts, texts[0]]), recipe, default_limits(max_stimuli=3))
    asked = [[stimulus.id for stimulus in request.stimuli] for request in requests]
    assert asked == [["3", "0", "6"], ["4", "1", "5"], ["2"]]


@given(st.lists(st.integers(1, 10), min_size=1, max_size=30), st.integers(1, 20))
def test_no_group_could_have_taken_the_next_stimulus_too(sizes: list[int], budget: int) -> None:
    costs = [
        (stimulus, Cost(1, size, 0, 0)) for stimulus, size in zip(stimuli_of(["x"] * len(sizes)), sizes, strict=True)
    ]
    sizes_by_id = {stimulus.id: cost.tokens for stimulus, cost in costs}
    groups = [[sizes_by_id[s.id] for s in group] for group in group_under(costs, Cost(99, budget, 0, 0))]
    assert [size for group in groups for size in group] == sizes
    for group, following in itertools.pairwise(groups):
        assert sum(group) <= budget or len(group) == 1
        assert sum(group) + following[0] > budget


@given(TEXTS)
def test_halving_loses_nothing_and_ends(texts: list[str]) -> None:
    request = ActivationsRequest(stimuli=stimuli_of(texts))
    parts = halve(request)
    if len(texts) == 1:
        assert parts == []
    else:
        assert [stimulus for part in parts for stimulus in part.stimuli] == request.stimuli
        assert all(part.stimuli and len(part.stimuli) < len(texts) for part in parts)


def test_a_budget_that_is_met_exactly_is_not_exceeded() -> None:
    costs = [(stimulus, Cost(1, 5, 5, 5)) for stimulus in stimuli_of(["a", "b", "c"])]
    assert [len(group) for group in group_under(costs, Cost(2, 10, 10, 10))] == [2, 1]
    for narrow in (Cost(1, 10, 10, 10), Cost(2, 9, 10, 10), Cost(2, 10, 9, 10), Cost(2, 10, 10, 9)):
        assert [len(group) for group in group_under(costs, narrow)] == [1, 1, 1]


def test_a_stimulus_is_never_expected_to_have_more_tokens_than_are_accepted() -> None:
    recipe = Recipe(Capture(select=["all"]), COLUMNS, "bfloat16")
    cost = stimulus_cost(Stimulus(id="a", text="ü" * 500), recipe, LIMITS)
    assert (cost.tokens, cost.response_bytes) == (400, 400 * 16 * 2)
