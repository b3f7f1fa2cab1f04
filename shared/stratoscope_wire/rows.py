"""The rows of one stimulus, checked as they arrive."""

from collections.abc import Sequence

from stratoscope_wire.errors import StreamCorruptError
from stratoscope_wire.selectors import is_pooled, is_single_row


class StimulusRows:
    """Checks that a stimulus's rows are those its selectors call for, in their order.

    ``all`` counts positions up from 0 and a span's ``all`` up from anywhere, both without a gap; every other selector
    gives one row, and ``mean`` gives position and token id -1. Where several selectors tell the stimulus's length,
    they must tell the same.

    Parameters
    ----------
    stimulus_id
        For messages.
    selectors
        Labels in the order of the request.
    token_ids
        The tokens, where the caller sent them; positions are then checked against them.
    """

    def __init__(self, stimulus_id: str, selectors: Sequence[str], token_ids: Sequence[int] | None) -> None:
        self.stimulus_id = stimulus_id
        self._selectors = selectors
        self._tokens: dict[int, int] = {} if token_ids is None else dict(enumerate(token_ids))
        self._n_tokens = None if token_ids is None else len(token_ids)
        self._index = -1
        self._previous = -1
        self._in_all = False
        self._is_pooled = False
        self._wanted: int | None = None

    def add(self, selector: str, position: int, token_id: int) -> None:
        """Take the next row."""
        if not (self._in_all and selector == self._selectors[self._index]):
            self._advance(selector)
            if selector == "all" and position != 0:
                self._refuse(f"selector 'all' starts at position {position}")
        elif position != self._previous + 1:
            self._refuse(f"selector {selector!r} has position {position} after {self._previous}")
        self._previous = position
        if self._is_pooled:
            if (position, token_id) != (-1, -1):
                self._refuse(f"pooled selector {selector!r} has position {position} and token {token_id}")
            return
        if position < 0 or token_id < 0:
            self._refuse(f"selector {selector!r} has position {position} and token {token_id}")
        if selector == "last":
            self._learn_length(position + 1)
        elif self._wanted is not None:
            self._check_position(self._wanted, position)
        if self._tokens.setdefault(position, token_id) != token_id:
            self._refuse(f"position {position} is token {self._tokens[position]} and also {token_id}")

    def close(self) -> None:
        """Declare that no row follows."""
        self._end_selector()
        if self._index != len(self._selectors) - 1:
            self._refuse(f"no rows for selector {self._selectors[self._index + 1]!r}")
        if self._n_tokens is not None and any(position >= self._n_tokens for position in self._tokens):
            self._refuse(f"a position lies beyond its {self._n_tokens} tokens")

    def _advance(self, selector: str) -> None:
        self._end_selector()
        self._index += 1
        if self._index == len(self._selectors) or selector != self._selectors[self._index]:
            due = self._selectors[self._index] if self._index < len(self._selectors) else "no more rows"
            self._refuse(f"a row for selector {selector!r} came where {due!r} was due")
        # Once for all rows of a selector: a text has hundreds of them.
        self._in_all, self._is_pooled = not is_single_row(selector), is_pooled(selector)
        self._wanted = int(selector) if selector.lstrip("-").isdigit() else None

    def _end_selector(self) -> None:
        if self._index >= 0 and self._selectors[self._index] == "all":
            self._learn_length(self._previous + 1)

    def _learn_length(self, n_tokens: int) -> None:
        if self._n_tokens not in (None, n_tokens):
            self._refuse(f"it has {self._n_tokens} tokens and also {n_tokens}")
        self._n_tokens = n_tokens

    def _check_position(self, wanted: int, position: int) -> None:
        if wanted < 0:
            self._learn_length(position - wanted)
        elif position != wanted:
            self._refuse(f"position {wanted} was asked for, {position} came")

    def _refuse(self, fault: str) -> None:
        raise StreamCorruptError(f"stimulus {self.stimulus_id!r}: {fault}")
