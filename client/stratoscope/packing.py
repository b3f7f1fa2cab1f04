"""Packing stimuli into requests that a server accepts."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from stratoscope.captures import explain, most_rows, most_tokens, row_bytes, to_json
from stratoscope.errors import InvalidRequestError
from stratoscope_wire import ActivationsRequest, Capture, Column, Limits, Stimulus
from stratoscope_wire.request import Dtype

TARGET_BYTES: Final = 32 << 20
"""Activations per answer aimed at: large enough to keep a connection busy, small enough to lose little by a cut."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything of a request but its stimuli, and the columns it gives.

    Attributes
    ----------
    capture
        Sites, layers and selectors.
    columns
        What the capture gives on the model at hand.
    dtype
        Type of the values on the wire.
    add_special_tokens
        Whether texts are tokenised with the model's special tokens.
    """

    capture: Capture
    columns: tuple[Column, ...]
    dtype: Dtype
    add_special_tokens: bool = True

    def request(self, stimuli: Sequence[Stimulus]) -> ActivationsRequest:
        """Build the request for some stimuli.

        Raises
        ------
        InvalidRequestError
            If an id occurs twice or a stimulus lacks a span.
        """
        try:
            return ActivationsRequest(
                stimuli=list(stimuli),
                capture=self.capture,
                dtype=self.dtype,
                add_special_tokens=self.add_special_tokens,
            )
        except ValidationError as error:
            raise InvalidRequestError(f"this request is not possible: {explain(error)}") from None


@dataclass(frozen=True, slots=True)
class Cost:
    """What stimuli take of a server's limits, or what there is of it.

    Attributes
    ----------
    stimuli, tokens, body_bytes, response_bytes
        Counts and bytes.
    """

    stimuli: int
    tokens: int
    body_bytes: int
    response_bytes: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.stimuli + other.stimuli,
            self.tokens + other.tokens,
            self.body_bytes + other.body_bytes,
            self.response_bytes + other.response_bytes,
        )

    def fits(self, budget: "Cost") -> bool:
        """Tell whether no part exceeds the budget's; a part equal to it fits."""
        return (
            self.stimuli <= budget.stimuli
            and self.tokens <= budget.tokens
            and self.body_bytes <= budget.body_bytes
            and self.response_bytes <= budget.response_bytes
        )


def pack(
    stimuli: Iterable[Stimulus], recipe: Recipe, limits: Limits, target_bytes: int = TARGET_BYTES
) -> list[ActivationsRequest]:
    """Pack stimuli into requests under a server's limits, those that begin alike together: a server computes it once.

    Tokens are estimated from above, without asking the server. A stimulus that is estimated to be too large on its
    own is sent alone; the server knows better.
    """
    budget = request_budget(recipe, limits, target_bytes)
    costs = ((stimulus, stimulus_cost(stimulus, recipe, limits)) for stimulus in sorted(stimuli, key=_beginning))
    return [recipe.request(group) for group in group_under(costs, budget)]


def _beginning(stimulus: Stimulus) -> tuple[str, list[int], list[tuple[str, str]]]:
    messages: list[tuple[str, str]] = [(message.role, message.content) for message in stimulus.messages or ()]
    return stimulus.text or "", stimulus.token_ids or [], messages


def group_under(costs: Iterable[tuple[Stimulus, Cost]], budget: Cost) -> Iterator[list[Stimulus]]:
    """Group consecutive stimuli so that no group exceeds the budget, unless a single stimulus does."""
    group: list[Stimulus] = []
    spent = Cost(0, 0, 0, 0)
    for stimulus, cost in costs:
        if group and not (spent + cost).fits(budget):
            yield group
            group, spent = [], Cost(0, 0, 0, 0)
        group.append(stimulus)
        spent += cost
    if group:
        yield group


def request_budget(recipe: Recipe, limits: Limits, target_bytes: int) -> Cost:
    """Return what the stimuli of one request may cost."""
    envelope = len(to_json(recipe.capture)) + 256
    return Cost(
        stimuli=limits.max_stimuli,
        tokens=limits.max_tokens_per_request,
        body_bytes=limits.max_body_bytes - envelope,
        response_bytes=min(target_bytes, limits.max_response_bytes),
    )


def stimulus_cost(stimulus: Stimulus, recipe: Recipe, limits: Limits) -> Cost:
    """Return what a stimulus is not expected to exceed."""
    body_bytes = len(to_json(stimulus)) + 1
    n_tokens = min(most_tokens(stimulus), limits.max_tokens_per_text)
    n_rows = most_rows(recipe.capture, n_tokens)
    return Cost(1, n_tokens, body_bytes, n_rows * row_bytes(recipe.columns, recipe.dtype))


def halve(request: ActivationsRequest) -> list[ActivationsRequest]:
    """Split a request that the server found too large; empty if it holds a single stimulus."""
    middle = len(request.stimuli) // 2
    if middle == 0:
        return []
    halves = request.stimuli[:middle], request.stimuli[middle:]
    return [request.model_copy(update={"stimuli": half}) for half in halves]
