"""The model card and the limits a server publishes."""

import hashlib
import json
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from stratoscope_wire.sites import LAYER_SITES, SITES, Column, capture_columns
from stratoscope_wire.version import PROTOCOL_VERSION


class SiteCard(BaseModel):
    """One site of a model.

    Attributes
    ----------
    site
        Its name.
    layers
        Number of layers at which it exists; 0 for a site of the whole model.
    width
        Values per row.
    hf_index
        Per layer (one entry for a site of the whole model), the index of the same state in Hugging Face's
        ``hidden_states``, or ``None``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    site: str
    layers: int
    width: int
    hf_index: tuple[int | None, ...]


class ModelCard(BaseModel):
    """What model answers, precisely enough to refuse mixing it with another.

    Attributes
    ----------
    model, revision
        Name, and the commit or content hash of the weights.
    dtype
        Type in which the engine computes.
    tokenizer_hash
        Hash of the tokenizer's definition.
    engine, versions
        Engine name and the versions of what computes.
    fingerprint
        Hash over every other field: two cards with the same fingerprint describe the same measurement.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    revision: str
    architecture: str
    dtype: str
    n_layers: int = Field(ge=1)
    d_model: int = Field(ge=1)
    n_heads: int = Field(ge=1)
    d_head: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    max_tokens: int = Field(ge=1)
    tokenizer_hash: str
    engine: str
    versions: dict[str, str]
    sites: tuple[SiteCard, ...]
    protocol: str = PROTOCOL_VERSION
    fingerprint: str = ""

    def signed(self) -> Self:
        """Return the card with its fingerprint filled in."""
        return self.model_copy(update={"fingerprint": self.compute_fingerprint()})

    def compute_fingerprint(self) -> str:
        """Return the first 32 hex digits of the SHA-256 of the card without its fingerprint."""
        facts = json.dumps(self.model_dump(exclude={"fingerprint"}), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:32]

    def columns(self, sites: list[str], layers: str | list[int] = "all") -> tuple[Column, ...]:
        """List the columns of a capture; see `stratoscope_wire.sites.capture_columns`."""
        return capture_columns(sites, layers, self)


def site_cards(n_layers: int, d_model: int, heads_width: int) -> tuple[SiteCard, ...]:
    """Describe every site of a pre-norm decoder.

    Hugging Face's tuple holds the embeddings, then the output of each block but the last, then the output of the
    final norm; the last block's own output is not in it.
    """
    none: tuple[int | None, ...] = (None,) * n_layers
    index: dict[str, tuple[int | None, ...]] = {
        "embed": (0,),
        "resid_post": (*range(1, n_layers), None),
        "final_norm": (n_layers,),
    }
    return tuple(
        SiteCard(
            site=site,
            layers=n_layers if site in LAYER_SITES else 0,
            width=heads_width if site == "heads" else d_model,
            hf_index=index.get(site, none),
        )
        for site in SITES
    )


class Limits(BaseModel):
    """Every limit a server enforces. A value equal to the limit is accepted, one more is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_body_bytes: int
    max_stimuli: int
    max_characters_per_text: int
    max_tokens_per_text: int
    max_tokens_per_request: int
    max_response_bytes: int
