"""The body of ``POST /v1/activations`` and ``POST /v1/plan``: data only, unknown fields refused."""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StringConstraints,
    field_validator,
    model_validator,
)

from stratoscope_wire.compression import Compression
from stratoscope_wire.selectors import SPAN_NAME, Selector, SpanSelector, selector_label
from stratoscope_wire.sites import LAYER_SITES, RESID_PRE, SITES

Dtype = Literal["float32", "bfloat16", "float16"]
"""Type of the values on the wire; ``bfloat16`` travels as its 16 raw bits in uint16."""

StimulusId = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00]+$")]
SpanName = Annotated[str, StringConstraints(pattern=SPAN_NAME)]
Sites = Annotated[
    list[str],
    Field(min_length=1, json_schema_extra={"items": {"enum": [*SITES, RESID_PRE]}, "uniqueItems": True}),
]
Offset = Annotated[StrictInt, Field(ge=0)]
TokenId = Annotated[StrictInt, Field(ge=0, lt=2**31)]

SOURCES: Final = ("text", "token_ids", "messages")
"""What a stimulus may be given as."""


class _Data(BaseModel):
    # pydantic would keep the last 16,384 short strings that it has read; ids and texts do not come again.
    model_config = ConfigDict(extra="forbid", frozen=True, cache_strings="keys")


class Message(_Data):
    """One turn of a conversation, rendered with the model's own chat template."""

    role: Literal["system", "user", "assistant"]
    content: str


def _one_source(schema: dict[str, Any]) -> None:
    """State in a stimulus's JSON schema that exactly one source is given."""
    given = [{"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in SOURCES]
    schema["oneOf"] = given


class Stimulus(_Data):
    """One stimulus: exactly one of ``text``, ``token_ids`` and ``messages``.

    Attributes
    ----------
    id
        The caller's name for it, unique in the request.
    spans
        Named half-open character ranges ``[start, end)`` of ``text``, in Unicode code points.
    """

    model_config = ConfigDict(json_schema_extra=_one_source)

    id: StimulusId
    text: str | None = None
    token_ids: Annotated[list[TokenId], Field(min_length=1)] | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    spans: dict[SpanName, tuple[Offset, Offset]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"stimulus {self.id!r} must have exactly one of text, token_ids, messages; it has "
                f"{' and '.join(given) or 'none'}"
            )
        if self.spans and self.text is None:
            raise ValueError(f"stimulus {self.id!r}: spans are character ranges of a text, which it does not have")
        for name, (start, end) in self.spans.items():
            if self.text is not None and not start < end <= len(self.text):
                raise ValueError(
                    f"stimulus {self.id!r}: span {name!r} [{start}, {end}) is empty or ends after the text's "
                    f"{len(self.text)} characters"
                )
        return self


class Capture(_Data):
    """What to read: sites, layers and token positions."""

    sites: Sites = ["resid_post"]
    layers: str | list[StrictInt] = "all"
    select: Annotated[list[Selector], Field(min_length=1)] = ["last"]

    @field_validator("sites")
    @classmethod
    def _known_and_unique(cls, sites: list[str]) -> list[str]:
        for site in sites:
            if site not in SITES and site != RESID_PRE:
                raise ValueError(f"unknown site {site!r}; sites are {', '.join((*SITES, RESID_PRE))}")
        if len(set(sites)) != len(sites):
            raise ValueError(f"sites {sites} name a site twice")
        return sites

    @field_validator("select")
    @classmethod
    def _unique_selectors(cls, select: list[Selector]) -> list[Selector]:
        labels = [selector_label(selector) for selector in select]
        if len(set(labels)) != len(labels):
            raise ValueError(f"select {labels} names a selector twice")
        return select

    @model_validator(mode="after")
    def _layers_have_a_site(self) -> Self:
        if isinstance(self.layers, list) and not self.layers and set(self.sites) & {*LAYER_SITES, RESID_PRE}:
            raise ValueError("layers is empty; give at least one layer, 'all', or a slice such as '0:80:4'")
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        """Values of the ``selector`` column, in the order in which a stimulus's rows come."""
        return tuple(selector_label(selector) for selector in self.select)

    @property
    def span_names(self) -> set[str]:
        """Names of the spans that every stimulus must have."""
        return {selector.span for selector in self.select if isinstance(selector, SpanSelector)}


class ActivationsRequest(_Data):
    """A request for hidden states of stimuli."""

    stimuli: Annotated[list[Stimulus], Field(min_length=1)]
    capture: Capture = Field(default_factory=Capture)
    dtype: Dtype = "float32"
    add_special_tokens: StrictBool = True
    compression: Compression | None = None

    @model_validator(mode="after")
    def _ids_are_unique_and_spans_present(self) -> Self:
        seen: set[str] = set()
        for stimulus in self.stimuli:
            if stimulus.id in seen:
                raise ValueError(f"stimulus id {stimulus.id!r} occurs twice")
            seen.add(stimulus.id)
            for span in sorted(self.capture.span_names - stimulus.spans.keys()):
                raise ValueError(f"stimulus {stimulus.id!r} has no span {span!r}, which capture.select asks for")
        return self
