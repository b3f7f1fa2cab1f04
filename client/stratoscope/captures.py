"""What is to be captured: building it from plain arguments, and what it will cost."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from stratoscope.errors import InvalidRequestError
from stratoscope_wire import Capture, Column, ModelCard, Selector, SpanSelector, Stimulus
from stratoscope_wire.dtypes import value_bytes
from stratoscope_wire.request import Dtype
from stratoscope_wire.selectors import is_pooled, is_single_row

Layers = str | Sequence[int]

MARGIN_TOKENS = 16
"""Special tokens that may surround a text, or a word of a conversation's template."""

MARGIN_TOKENS_PER_MESSAGE = 64


def make_capture(
    sites: Sequence[str] = ("resid_post",), layers: Layers = "all", select: Sequence[Selector | str] = ("last",)
) -> Capture:
    """Build a capture.

    Parameters
    ----------
    sites
        Site names.
    layers
        ``"all"``, a list of layers, or a slice such as ``"0:80:4"``.
    select
        Selectors, or their labels: ``"last"``, ``"all"``, ``"mean"``, ``-2`` or ``"-2"``, ``"noun:last"``.

    Raises
    ------
    InvalidRequestError
        If a name is unknown or something is asked for twice.
    """
    for name, value in (("sites", sites), ("select", select)):
        if isinstance(value, str):
            raise InvalidRequestError(f"{name} is the text {value!r}; give a list, for example [{value!r}]")
    selectors = [parse_selector(item) if isinstance(item, str) else item for item in select]
    chosen = layers if isinstance(layers, str) else list(layers)
    try:
        return Capture(sites=list(sites), layers=chosen, select=selectors)
    except ValidationError as error:
        raise InvalidRequestError(f"this capture is not possible: {explain(error)}") from None


def parse_selector(label: str) -> Selector:
    """Read a selector's label: ``last``, ``all``, ``mean``, a position such as ``-2``, or ``span:take``.

    Raises
    ------
    InvalidRequestError
        If it is none of these.
    """
    fixed: dict[str, Literal["last", "all", "mean"]] = {"last": "last", "all": "all", "mean": "mean"}
    if label in fixed:
        return fixed[label]
    digits = label.removeprefix("-")
    if digits.isascii() and digits.isdigit():
        return int(label)
    span, _, take = label.partition(":")
    try:
        return SpanSelector.model_validate({"span": span, "take": take or "last"})
    except ValidationError:
        raise InvalidRequestError(
            f"{label!r} is no selector; expected last, all, mean, a position such as -2, or SPAN:TAKE "
            "with TAKE one of last, first, mean, all"
        ) from None


def capture_columns(capture: Capture, card: ModelCard) -> tuple[Column, ...]:
    """List the columns that a capture gives on a model.

    Raises
    ------
    InvalidRequestError
        If the model does not have a site or layer.
    """
    layers = capture.layers if isinstance(capture.layers, str) else list(capture.layers)
    try:
        return card.columns(list(capture.sites), layers)
    except ValueError as error:
        raise InvalidRequestError(str(error)) from None


def lossless_dtype(capture: Capture, card: ModelCard) -> Dtype:
    """Return the smallest type in which this capture loses nothing.

    A model that computes in bfloat16 has nothing more to tell; but a mean is pooled in float32.
    """
    pooled = any(is_pooled(selector) for selector in capture.select)
    return "bfloat16" if card.dtype == "bfloat16" and not pooled else "float32"


def row_bytes(columns: Sequence[Column], dtype: Dtype) -> int:
    """Return the bytes of activations in one row."""
    return sum(column.width for column in columns) * value_bytes(dtype)


def most_tokens(stimulus: Stimulus) -> int:
    """Return a number of tokens that a stimulus is not expected to exceed: one per UTF-8 byte, and a margin."""
    if stimulus.token_ids is not None:
        return len(stimulus.token_ids)
    if stimulus.text is not None:
        return len(stimulus.text.encode()) + MARGIN_TOKENS
    messages = stimulus.messages or []
    return MARGIN_TOKENS + sum(len(turn.content.encode()) + MARGIN_TOKENS_PER_MESSAGE for turn in messages)


def most_rows(capture: Capture, n_tokens: int) -> int:
    """Return a number of rows that a stimulus of at most `n_tokens` tokens does not exceed."""
    return sum(1 if is_single_row(selector) else n_tokens for selector in capture.select)


def explain(error: ValidationError) -> str:
    """Return the first finding of a validation, with its place."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def to_json(model: BaseModel) -> bytes:
    """Return the JSON that is sent for a request or stimulus.

    Raises
    ------
    InvalidRequestError
        If a text is not Unicode: half a surrogate pair, as broken conversions leave behind.
    """
    try:
        return model.model_dump_json(exclude_none=True).encode()
    except PydanticSerializationError as error:
        name = f"stimulus {model.id!r}" if isinstance(model, Stimulus) else "the request"
        raise InvalidRequestError(f"{name} is not valid Unicode and cannot be sent: {error}") from None
