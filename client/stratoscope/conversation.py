"""What a client says to a server, as dialogues that perform no I/O: the logic of both clients."""

import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from stratoscope.activations import Activations
from stratoscope.captures import Layers, capture_columns, explain, make_capture, to_json
from stratoscope.errors import ConfigurationError, CorruptAnswerError, InvalidRequestError, TooLargeError
from stratoscope.fetching import Fetched, Steps, ask, fetch
from stratoscope.link import Link
from stratoscope.packing import Recipe, halve, pack
from stratoscope.retries import RetryPolicy
from stratoscope.transport import Call
from stratoscope_wire import PROTOCOL_VERSION, ActivationsRequest, Limits, ModelCard, Plan, Selector, Stimulus
from stratoscope_wire.request import Dtype

Spans = Mapping[str, tuple[int, int]]
Model = TypeVar("Model", bound=BaseModel)


class Conversation:
    """The dialogues with one server. Card and limits are asked for once.

    Parameters
    ----------
    policy
        When to try again.
    link
        Decides how answers are packed.
    """

    def __init__(self, policy: RetryPolicy, link: Link) -> None:
        self.policy = policy
        self._link = link
        self._asker = secrets.token_hex(8)
        self._card: ModelCard | None = None
        self._limits: Limits | None = None

    def model(self) -> Steps[ModelCard]:
        """Ask for the model card."""
        if self._card is None:
            answer = yield from ask(Call("GET", "/v1/model"), self.policy)
            self._card = _checked_card(_parsed(ModelCard, bytes(answer.body), answer.url))
        return self._card

    def limits(self) -> Steps[Limits]:
        """Ask for the limits."""
        if self._limits is None:
            answer = yield from ask(Call("GET", "/v1/limits"), self.policy)
            self._limits = _parsed(Limits, bytes(answer.body), answer.url)
        return self._limits

    def ready(self) -> Steps[None]:
        """Ask whether the model is loaded and the engine answers."""
        yield from ask(Call("GET", "/readyz"), self.policy)

    def plan(self, request: ActivationsRequest) -> Steps[Plan]:
        """Ask what a request would cost."""
        answer = yield from ask(Call("POST", "/v1/plan", to_json(request)), self.policy)
        return _parsed(Plan, bytes(answer.body), answer.url)

    def fetch(self, request: ActivationsRequest, policy: RetryPolicy | None = None) -> Steps[Fetched]:
        """Fetch one request, whatever comes of it, under the conversation's policy or another."""
        card = yield from self.model()
        return (yield from fetch(request, card, policy or self.policy, self._asker, self._link))

    def activations(
        self,
        texts: Sequence[str | Stimulus],
        *,
        sites: Sequence[str],
        layers: Layers,
        select: Sequence[Selector | str],
        dtype: Dtype,
        add_special_tokens: bool,
        spans: Sequence[Spans] | None,
    ) -> Steps[Activations]:
        """Fetch activations of any number of texts, in as many requests as that takes."""
        stimuli = as_stimuli(texts, spans)
        card = yield from self.model()
        limits = yield from self.limits()
        capture = make_capture(sites, layers, select)
        recipe = Recipe(capture, capture_columns(capture, card), dtype, add_special_tokens)
        requests = deque(pack(stimuli, recipe, limits))
        batches = []
        while requests:
            fetched = yield from fetch(requests.popleft(), card, self.policy, self._asker, self._link)
            batches += fetched.batches
            requests.extendleft(reversed(smaller_or_raise(fetched)))
        return Activations(
            batches,
            ids=[stimulus.id for stimulus in stimuli],
            selectors=capture.labels,
            columns=recipe.columns,
            card=card,
            dtype=dtype,
        )


def as_stimuli(texts: Sequence[str | Stimulus], spans: Sequence[Spans] | None) -> list[Stimulus]:
    """Turn texts into stimuli named ``0``, ``1``, ...; leave stimuli as they are.

    Raises
    ------
    InvalidRequestError
        If there are none, an id occurs twice, or a span does not fit its text.
    """
    if isinstance(texts, str):
        raise InvalidRequestError("texts is a single text; give a list, for example [text]")
    if not texts:
        raise InvalidRequestError("texts is empty; give at least one text")
    if spans is not None and len(spans) != len(texts):
        raise InvalidRequestError(f"there are {len(texts)} texts and {len(spans)} spans; give one mapping per text")
    stimuli = [_as_stimulus(index, text, None if spans is None else spans[index]) for index, text in enumerate(texts)]
    ids = [stimulus.id for stimulus in stimuli]
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise InvalidRequestError(f"stimulus id {twice!r} occurs twice")
    return stimuli


def smaller_or_raise(fetched: Fetched) -> list[ActivationsRequest]:
    """Return what to ask next after a request: nothing, or its halves if the server found it too large.

    Raises
    ------
    StratoscopeError
        If it failed for another reason, or cannot be halved.
    """
    if fetched.error is None:
        return []
    halves = halve(fetched.request) if isinstance(fetched.error, TooLargeError) and not fetched.batches else []
    if not halves:
        raise fetched.error
    return halves


def _as_stimulus(index: int, text: str | Stimulus, spans: Spans | None) -> Stimulus:
    if isinstance(text, Stimulus):
        if spans:
            raise InvalidRequestError(f"stimulus {text.id!r} has its own spans; leave spans out")
        return text
    try:
        return Stimulus(id=str(index), text=text, spans=dict(spans or {}))
    except ValidationError as error:
        raise InvalidRequestError(f"text {index} cannot be sent: {explain(error)}") from None


def _parsed(model: type[Model], body: bytes, url: str) -> Model:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise CorruptAnswerError(
            f"{url} did not answer with a {model.__name__} of protocol {PROTOCOL_VERSION}: {explain(error)}"
        ) from None


def _checked_card(card: ModelCard) -> ModelCard:
    if card.protocol != PROTOCOL_VERSION:
        raise ConfigurationError(
            f"the server speaks protocol {card.protocol}, this client {PROTOCOL_VERSION}; install matching versions"
        )
    if card.fingerprint != card.compute_fingerprint():
        raise CorruptAnswerError(f"the model card does not match its own fingerprint {card.fingerprint!r}")
    return card
