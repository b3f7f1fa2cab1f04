"""Sites: the named places in a model where its state can be read, and the columns they become.

A name, never a bare integer, identifies a state. Layers are decoder blocks counted from 0.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

LAYER_SITES: Final = ("resid_mid", "resid_post", "attn_out", "mlp_out", "heads")
"""Sites that exist once per decoder block."""

MODEL_SITES: Final = ("embed", "final_norm")
"""Sites that exist once per model."""

SITES: Final = ("embed", *LAYER_SITES, "final_norm")
"""Every stored site, in the order in which columns are laid out."""

RESID_PRE: Final = "resid_pre"
"""Alias: ``embed`` for layer 0, ``resid_post.l-1`` above. Accepted in requests, never stored."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of activations: a site at a layer.

    Attributes
    ----------
    site
        A name out of ``SITES``.
    layer
        Decoder block counted from 0; ``None`` for ``embed`` and ``final_norm``.
    width
        Number of values per row: ``d_model``, or ``n_heads * d_head`` for ``heads``.
    hf_index
        Index of the same state in Hugging Face's ``hidden_states``; ``None`` where it has none.
    """

    site: str
    layer: int | None
    width: int
    hf_index: int | None

    @property
    def name(self) -> str:
        """Column name on the wire and on disk, for example ``resid_post.12``."""
        return column_name(self.site, self.layer)


class _SiteShape(Protocol):
    @property
    def site(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def hf_index(self) -> Sequence[int | None]: ...


class _ModelShape(Protocol):
    @property
    def n_layers(self) -> int: ...
    @property
    def sites(self) -> Iterable[_SiteShape]: ...


def column_name(site: str, layer: int | None) -> str:
    """Return the column name of a site at a layer."""
    return site if layer is None else f"{site}.{layer}"


def parse_column(name: str) -> tuple[str, int | None]:
    """Split a column name into site and layer.

    Raises
    ------
    ValueError
        If the name is none of a site's.
    """
    site, _, layer = name.partition(".")
    if site in MODEL_SITES and not layer:
        return site, None
    if site in LAYER_SITES and layer.isascii() and layer.isdigit():
        return site, int(layer)
    raise ValueError(f"{name!r} is not a column name; expected for example 'resid_post.12' or 'embed'")


def stored_site(site: str, layer: int | None) -> tuple[str, int | None]:
    """Translate the alias ``resid_pre.l`` to the site under which that state is stored."""
    if site != RESID_PRE or layer is None:
        return site, layer
    return ("embed", None) if layer == 0 else ("resid_post", layer - 1)


def resolve_layers(layers: str | Sequence[int], n_layers: int) -> list[int]:
    """Turn ``"all"``, a list or a slice string into ascending layer numbers.

    Parameters
    ----------
    layers
        ``"all"``, a list of unique layers (negative ones count from the end), or a slice ``"start:stop:step"``.
    n_layers
        Number of decoder blocks of the model.

    Raises
    ------
    ValueError
        If a layer does not exist, is named twice, or the slice is empty or malformed.
    """
    if isinstance(layers, str):
        return list(range(n_layers)) if layers == "all" else _resolve_slice(layers, n_layers)
    resolved = []
    for layer in layers:
        if not -n_layers <= layer < n_layers:
            raise ValueError(f"layer {layer} does not exist: the model has {n_layers} layers (0 to {n_layers - 1})")
        resolved.append(layer % n_layers)
    if len(set(resolved)) != len(resolved):
        raise ValueError(f"layers {list(layers)} name a layer twice")
    return sorted(resolved)


def _resolve_slice(text: str, n_layers: int) -> list[int]:
    try:
        bounds = [int(part) if part else None for part in text.split(":")]
        if not 2 <= len(bounds) <= 3:
            raise ValueError
    except ValueError:
        raise ValueError(f"layers {text!r} is neither 'all' nor a slice such as '0:80:4'") from None
    if len(bounds) == 3 and bounds[2] is not None and bounds[2] < 1:
        raise ValueError(f"layers {text!r}: the step must be at least 1")
    # Python would clamp a bound beyond the last layer; here it means that another model was expected.
    if any(bound is not None and abs(bound) > n_layers for bound in bounds[:2]):
        raise ValueError(f"layers {text!r} reaches beyond the model's {n_layers} layers")
    chosen = list(range(n_layers))[slice(*bounds)]
    if not chosen:
        raise ValueError(f"layers {text!r} selects none of the model's {n_layers} layers")
    return chosen


def capture_columns(sites: Sequence[str], layers: str | Sequence[int], model: _ModelShape) -> tuple[Column, ...]:
    """List the columns a capture asks for, in the canonical order: by ``SITES``, then by layer.

    Parameters
    ----------
    sites
        Site names; ``resid_pre`` is resolved to the sites that store it.
    layers
        As in `resolve_layers`; without meaning for ``embed`` and ``final_norm``.
    model
        A model card, or anything with ``n_layers`` and ``sites``.

    Raises
    ------
    ValueError
        If the model does not publish a site, or a layer does not exist.
    """
    cards = {card.site: card for card in model.sites}
    wanted: set[tuple[str, int | None]] = set()
    for site in sites:
        if site not in cards and site != RESID_PRE:
            raise ValueError(f"site {site!r} is not published by this model; it has {', '.join([*cards, RESID_PRE])}")
        if site in MODEL_SITES:
            wanted.add((site, None))
        else:
            wanted.update(stored_site(site, layer) for layer in resolve_layers(layers, model.n_layers))
    ordered = sorted(wanted, key=lambda key: (SITES.index(key[0]), -1 if key[1] is None else key[1]))
    return tuple(Column(site, layer, cards[site].width, cards[site].hf_index[layer or 0]) for site, layer in ordered)
