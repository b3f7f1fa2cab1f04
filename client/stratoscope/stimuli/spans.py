"""Named spans of a text: from what a table says to character ranges."""

import re
from collections.abc import Sequence
from typing import Final

PREFIX: Final = "span."
"""Columns whose names begin so hold spans: ``span.noun`` holds the span ``noun``."""

RANGE: Final = re.compile(r"([0-9]{1,9}):([0-9]{1,9})")


def parse_span(value: object, text: str) -> tuple[int, int]:
    """Find a span in a text.

    Parameters
    ----------
    value
        Words that occur in the text exactly once, or a half-open range of characters (Unicode code points): the text
        ``"start:end"``, or a list of two integers.
    text
        The stimulus's text.

    Raises
    ------
    ValueError
        If the span is not in the text, or not unambiguously so.
    """
    if isinstance(value, str):
        match = RANGE.fullmatch(value)
        if match is None:
            return _find_words(value, text)
        if value in text:
            raise ValueError(
                f"{value!r} is a range of characters, and also occurs in the text; give its place there as a range"
            )
        return _checked(int(match[1]), int(match[2]), text)
    if isinstance(value, Sequence) and len(value) == 2 and all(type(bound) is int for bound in value):
        return _checked(value[0], value[1], text)
    raise ValueError(f"{value!r} is neither words of the text nor a range of characters such as '2:8'")


def _find_words(words: str, text: str) -> tuple[int, int]:
    if not words:
        raise ValueError("the span is empty")
    start = text.find(words)
    if start < 0:
        raise ValueError(f"{words!r} does not occur in the text {_shortened(text)!r}")
    # From start + 1, not from the end of the first occurrence: "aa" occurs twice in "aaa".
    if text.find(words, start + 1) >= 0:
        raise ValueError(
            f"{words!r} occurs more than once in the text {_shortened(text)!r}; give the range of characters, "
            f"for example '{start}:{start + len(words)}'"
        )
    return start, start + len(words)


def _checked(start: int, end: int, text: str) -> tuple[int, int]:
    if not 0 <= start < end <= len(text):
        raise ValueError(f"the range {start}:{end} is empty or leaves the text's {len(text)} characters")
    return start, end


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
