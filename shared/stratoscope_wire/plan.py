"""The answer of ``POST /v1/plan``: what a request would cost, computed without running the model."""

from pydantic import BaseModel, ConfigDict


class PlannedStimulus(BaseModel):
    """Tokens and rows of one stimulus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    n_tokens: int
    n_rows: int


class Plan(BaseModel):
    """Cost of a request.

    Attributes
    ----------
    bytes
        Exact bytes of activations in the answer: rows times the width of every column times the size of a value.
        It is the number in the answer's header and footer, and the one the response limit is held against. Ids,
        positions and Arrow's framing come on top.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stimuli: tuple[PlannedStimulus, ...]
    columns: tuple[str, ...]
    n_tokens: int
    n_rows: int
    bytes: int
    fingerprint: str
