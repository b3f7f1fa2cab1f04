"""Selectors: which token positions of a stimulus are read."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt

SPAN_NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"
"""Pattern of a span's name."""

Take = Literal["last", "first", "mean", "all"]


class SpanSelector(BaseModel):
    """Rows of a named span: its last or first token, the mean over its tokens, or all of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    span: Annotated[str, Field(pattern=SPAN_NAME)]
    take: Take = "last"


Selector = Literal["last", "all", "mean"] | StrictInt | SpanSelector
"""``last``, ``all``, ``mean`` (pooled in float32), an absolute position (negative from the end), or a span."""


def selector_label(selector: Selector | str) -> str:
    """Return the value of the ``selector`` column for a selector: ``last``, ``-2``, ``first:mean`` ...

    A label is returned as it is.
    """
    if isinstance(selector, SpanSelector):
        return f"{selector.span}:{selector.take}"
    return str(selector)


def is_pooled(selector: Selector | str) -> bool:
    """Tell whether a selector, or the one of a label, gives one pooled row, whose position and token id are -1."""
    return selector_label(selector).rpartition(":")[2] == "mean"


def is_single_row(selector: Selector | str) -> bool:
    """Tell whether a selector, or the one of a label, gives exactly one row per stimulus."""
    return selector_label(selector).rpartition(":")[2] != "all"
