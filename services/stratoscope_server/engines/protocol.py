"""What an engine is: the one interface between the HTTP side and whatever runs the model."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from stratoscope_server.engines.sizes import Distribution
from stratoscope_wire import Block, Column, Message, ModelCard
from stratoscope_wire.request import Dtype

IntArray = npt.NDArray[np.int32]

DEFAULT_STALL_SECONDS: Final = 120.0
"""An engine that owes work and gives no sign for so long counts as dead."""


class EngineError(Exception):
    """A capture failed for a reason that the caller should read.

    Attributes
    ----------
    code
        Stable name, for the error body or record.
    retryable
        Whether the same request may succeed later.
    status
        HTTP status if nothing was sent yet.
    """

    def __init__(self, code: str, message: str, *, status: int = 500, retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenised text.

    Attributes
    ----------
    token_ids : int32 array of shape (n_tokens,)
    offsets : int32 array of shape (n_tokens, 2)
        Half-open range of characters of the text that each token covers; (0, 0) for an added special token.
    """

    token_ids: IntArray
    offsets: IntArray


class Tokenizer(Protocol):
    """Turns texts into token ids."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Encoded:
        """Tokenise a text, never truncating it."""
        ...

    def encode_chat(self, messages: Sequence[Message]) -> Encoded:
        """Render messages with the model's own chat template, up to the generation prompt, and tokenise them.

        Raises
        ------
        ValueError
            If the model has no chat template, or the template refuses the messages.
        """
        ...


@dataclass(frozen=True, slots=True)
class RowSpec:
    """The rows one selector takes from one prompt.

    Attributes
    ----------
    selector
        The selector's label.
    positions : int32 array of shape (n_positions,)
        Absolute token positions, ascending, at least one.
    pooled
        Whether they become one row, their mean in float32, instead of a row each.
    """

    selector: str
    positions: IntArray
    pooled: bool

    @property
    def n_rows(self) -> int:
        """Number of rows this gives."""
        return 1 if self.pooled else len(self.positions)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenised stimulus and what to read of it.

    Attributes
    ----------
    stimulus_id
        The caller's id.
    token_ids : int32 array of shape (n_tokens,)
    rows
        In the order of the request's selectors.
    """

    stimulus_id: str
    token_ids: IntArray
    rows: tuple[RowSpec, ...]

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return len(self.token_ids)

    @property
    def n_rows(self) -> int:
        """Number of rows in the answer."""
        return sum(spec.n_rows for spec in self.rows)


@dataclass(frozen=True, slots=True)
class Job:
    """One admitted request: everything checked, nothing left to refuse."""

    request_id: str
    prompts: tuple[Prompt, ...]
    columns: tuple[Column, ...]
    dtype: Dtype


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What can be measured of an engine at any time.

    Attributes
    ----------
    requests
        Prompts that it has taken in and not finished.
    ring_bytes, ring_used_bytes
        Size of the memory in which rows wait for their reader, and how much of it is in use; 0 where there is none.
    ring_wait_seconds
        How long prompts have waited for room in it, summed.
    pass_prompts, pass_tokens
        How many prompts and tokens its forward passes took; ``None`` if it does not tell.
    """

    requests: int = 0
    ring_bytes: int = 0
    ring_used_bytes: int = 0
    ring_wait_seconds: float = 0.0
    pass_prompts: Distribution | None = None
    pass_tokens: Distribution | None = None


class Engine(Protocol):
    """Runs a model and reads its sites."""

    @property
    def card(self) -> ModelCard:
        """What model this is."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        ...

    @property
    def status(self) -> EngineStatus:
        """What can be measured now."""
        ...

    @property
    def max_stimulus_bytes(self) -> int | None:
        """Most that the rows of one stimulus may take in the engine's own memory, if it has such a limit."""
        ...

    def refuse(self, job: Job) -> None:
        """Return if `capture` can try; called on any thread, before a request is let wait.

        Raises
        ------
        EngineError
            If the job can never be computed.
        """
        ...

    async def start(self) -> None:
        """Check what can only be checked by running. Called once, in the server's event loop, before anything else.

        Raises
        ------
        Exception
            If the engine must not serve; the server then ends with its message.
        """
        ...

    def capture(self, job: Job) -> AsyncGenerator[Block, None]:
        """Yield the rows of every prompt, each prompt once and unbroken, in any order of prompts.

        Closing the generator ends the work for this job. The values of a block are only valid until the next one is
        asked for.

        Raises
        ------
        EngineError
            If a prompt cannot be captured. No partial rows of it have been yielded as complete.
        """
        ...

    async def check_ready(self) -> None:
        """Return if the engine can answer.

        Raises
        ------
        EngineError
            If it cannot.
        """
        ...

    async def wait_failed(self) -> EngineError:
        """Return once the engine can never answer again, with the reason; for most engines that is never."""
        ...

    async def close(self) -> None:
        """Free what the engine holds."""
        ...
