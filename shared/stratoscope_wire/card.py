"""The model card and the limits a server publishes."""

import hashlib
import json
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stratoscope_wire.sites import LAYER_SITES, SITES, Column, capture_columns
from stratoscope_wire.version import PROTOCOL_VERSION

MAX_LAYERS: Final = 10_000
"""Of a card that is believed: lists of so many are made before anything else of a server is checked."""


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
    n_layers: int = Field(ge=1, le=MAX_LAYERS)
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

    @model_validator(mode="after")
    def _sites_fit_the_layers(self) -> Self:
        for site in self.sites:
            if site.layers not in (0, self.n_layers) or len(site.hf_index) != max(1, site.layers):
                raise ValueError(
                    f"site {site.site!r} has {site.layers} layers and {len(site.hf_index)} indices; the model has "
                    f"{self.n_layers} layers"
                )
        return self

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
    """Every limit a server enforces. A value equal to the limit is accepted, one more is refused.

    Attributes
    ----------
    max_header_bytes, max_headers, max_url_bytes, max_body_bytes, max_json_depth, max_json_values
        Of one HTTP request.
    max_stimuli, max_characters_per_text, max_tokens_per_text, max_tokens_per_request
        Of what is asked. Characters are counted before anything is tokenised.
    max_response_bytes
        Of the activations in one answer, computed exactly before the model runs.
    max_stimulus_bytes
        Of one stimulus's rows in the engine, its own padding included; ``None`` where the engine has no such limit.
    max_bytes_in_flight
        Of all answers that are waited for or being sent.
    max_running, max_queued, max_queued_per_key, max_queued_tokens
        Requests that are computed, requests that wait for it, those of one API key, and the tokens that wait.
    max_connections
        Open at the same time.
    receive_seconds, keep_alive_seconds
        For a whole request to arrive; for an idle connection.
    queue_seconds, first_batch_seconds, between_batches_seconds, write_stall_seconds, request_seconds
        For a request's turn; for the engine's first rows after it, and for the next ones; for a client that reads
        nothing; for the whole request.
    drain_seconds
        For running requests to end once the server has been told to stop.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_header_bytes: int
    max_headers: int
    max_url_bytes: int
    max_body_bytes: int
    max_json_depth: int
    max_json_values: int
    max_stimuli: int
    max_characters_per_text: int
    max_tokens_per_text: int
    max_tokens_per_request: int
    max_response_bytes: int
    max_stimulus_bytes: int | None
    max_bytes_in_flight: int
    max_running: int
    max_queued: int
    max_queued_per_key: int
    max_queued_tokens: int
    max_connections: int
    receive_seconds: float
    keep_alive_seconds: float
    queue_seconds: float
    first_batch_seconds: float
    between_batches_seconds: float
    write_stall_seconds: float
    request_seconds: float
    drain_seconds: float
