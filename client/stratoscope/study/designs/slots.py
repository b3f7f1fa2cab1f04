"""Templates with slots for items and their articles, filled so that the place of every item is known."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stratoscope.errors import StimulusError

ARTICLE = "_article"


@dataclass(frozen=True)
class Slots:
    """A template in pieces.

    Attributes
    ----------
    pieces : tuple of (str, str or None)
        Literal text and the slot that follows it, ``None`` after the last.
    articles : frozenset of str
        Items of which the template holds the article.
    """

    pieces: tuple[tuple[str, str | None], ...]
    articles: frozenset[str]

    def filled(self, values: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        """Fill the slots.

        Parameters
        ----------
        values
            By name of the slot, in lower case: ``first``, ``first_article``, ...

        Returns
        -------
        text : str
        spans : dict of str to str
            ``span.ITEM`` to ``"start:stop"``, the half-open range of the item's characters.
        """
        text, spans = "", {}
        for literal, slot in self.pieces:
            text += literal
            if slot is None:
                continue
            value = values[slot.lower()]
            start = len(text)
            text += value[:1].upper() + value[1:] if slot[0].isupper() else value
            if not slot.endswith(ARTICLE):
                spans[f"span.{slot.lower()}"] = f"{start}:{len(text)}"
        return text, spans


def parse_slots(template: str, items: Sequence[str]) -> Slots:
    """Take a template apart.

    Parameters
    ----------
    template : str
        For the item ``first``: ``{first}`` and ``{first_article}``, or with a capital ``{First}`` and
        ``{First_article}``. Every item stands in it once, its article at most once.
    items : sequence of str
        Names of the items, in lower case.

    Raises
    ------
    StimulusError
        If the template cannot be parsed, names something else, or lacks or repeats an item.
    """
    try:
        parsed = [(literal, slot, spec, how) for literal, slot, spec, how in string.Formatter().parse(template)]
    except ValueError as error:
        raise StimulusError(f"template {template!r}: {error}; write literal braces twice") from None
    names = [slot for _, slot, _, _ in parsed if slot is not None]
    known = [*items, *(item + ARTICLE for item in items)]
    for name, spec, how in ((slot, spec, how) for _, slot, spec, how in parsed if slot is not None):
        if name[:1].lower() + name[1:] not in known or spec or how:
            wrong = f"{{{name}{'!' + how if how else ''}{':' + spec if spec else ''}}}"
            raise StimulusError(
                f"template {template!r}: {wrong} is not a slot; use {', '.join(known)}, with a capital first letter "
                "where the text needs one"
            )
    lowered = [name.lower() for name in names]
    for name in known:
        if lowered.count(name) > 1 or (name in items and name not in lowered):
            often = "at most once" if name.endswith(ARTICLE) else "exactly once"
            raise StimulusError(f"template {template!r} must hold {{{name}}} {often}, not {lowered.count(name)} times")
    articles = frozenset(item for item in items if item + ARTICLE in lowered)
    return Slots(tuple((literal, slot) for literal, slot, _, _ in parsed), articles)
