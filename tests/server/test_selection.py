import numpy as np
import pytest

from stratoscope_server.engines.protocol import Prompt
from stratoscope_server.engines.synthetic import SyntheticTokenizer
from stratoscope_server.selection import row_keys, select_rows
from stratoscope_wire import Selector, SpanSelector

NO_OFFSETS = np.zeros((5, 2), np.int32)


@pytest.mark.parametrize(
    ("selector", "positions", "pooled"),
    [
        ("last", [4], False),
        ("all", [0, 1, 2, 3, 4], False),
        ("mean", [0, 1, 2, 3, 4], True),
        (0, [0], False),
        (-5, [0], False),
        (-1, [4], False),
        (4, [4], False),
    ],
)
def test_a_selector_names_absolute_positions(selector: Selector, positions: list[int], *, pooled: bool) -> None:
    (spec,) = select_rows([selector], 5, {}, NO_OFFSETS)
    assert (spec.positions.tolist(), spec.pooled, spec.selector) == (positions, pooled, str(selector))


@pytest.mark.parametrize("position", [5, -6])
def test_a_position_that_does_not_exist_is_refused(position: int) -> None:
    with pytest.raises(ValueError, match=f"position {position} does not exist: the stimulus has 5 tokens"):
        select_rows([position], 5, {}, NO_OFFSETS)


@pytest.mark.parametrize(
    ("take", "positions"), [("first", [2]), ("last", [4]), ("all", [2, 3, 4]), ("mean", [2, 3, 4])]
)
def test_a_span_selects_the_tokens_that_cover_its_characters(take: str, positions: list[int]) -> None:
    text = "A big old church, and"
    encoded = SyntheticTokenizer().encode(text, add_special_tokens=True)
    assert len(encoded.token_ids) == 7
    selector = SpanSelector(span="place", take=take)
    (spec,) = select_rows([selector], 7, {"place": (3, 11)}, encoded.offsets)
    assert spec.positions.tolist() == positions
    assert spec.selector == f"place:{take}"
    assert spec.n_rows == (1 if take == "mean" else len(positions))


def test_a_span_that_no_token_covers_is_refused() -> None:
    encoded = SyntheticTokenizer().encode("A  church", add_special_tokens=True)
    with pytest.raises(ValueError, match="no token covers span 'gap'"):
        select_rows([SpanSelector(span="gap")], 3, {"gap": (1, 2)}, encoded.offsets)


def test_row_keys_say_what_each_row_is() -> None:
    ids = np.array([9, 8, 7], np.int32)
    prompt = Prompt("s", ids, select_rows(["last", "mean", "all"], 3, {}, NO_OFFSETS[:3]))
    stimuli, selectors, positions, tokens = row_keys([prompt])
    assert stimuli == ["s"] * 5
    assert selectors == ["last", "mean", "all", "all", "all"]
    assert positions.tolist() == [2, -1, 0, 1, 2]
    assert tokens.tolist() == [7, -1, 9, 8, 7]
