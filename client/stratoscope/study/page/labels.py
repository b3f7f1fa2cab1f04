"""Words and colours of the figures."""

from __future__ import annotations

from collections.abc import Iterable

# Okabe & Ito's palette without its yellow, which is too faint for a line.
PALETTE = (
    ("#0072B2", "o"),
    ("#D55E00", "^"),
    ("#009E73", "s"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#333333", "X"),
    ("#8C6D1F", "<"),
)

VERDICTS = {
    **dict.fromkeys(("holds", "found", "above its baselines"), "yes"),
    **dict.fromkeys(("does not hold", "not found", "at its baselines"), "no"),
}
COLORS = {"yes": "#009E73", "no": "#D55E00", "open": "#7a8288"}


def verdict_kind(verdict: str | None) -> str:
    """Return "yes", "no" or "open": how a verdict is coloured. One that is not known is open."""
    return VERDICTS.get(verdict or "", "open")


def plain(text: str, limit: int = 36) -> str:
    """Shorten a name for a figure, and keep matplotlib from reading it as mathematics or leaving it out."""
    short = text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
    return short.replace("$", r"\$").replace("\n", " ").lstrip("_") or "?"


def styles(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker by name, in order of first appearance; they repeat after eight."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(dict.fromkeys(names))}
