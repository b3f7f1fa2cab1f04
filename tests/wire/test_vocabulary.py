import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stratoscope_wire import ActivationsRequest, ModelCard
from stratoscope_wire.dtypes import is_finite, to_float32
from stratoscope_wire.sites import SITES, parse_column, resolve_layers


def test_every_column_name_is_parsed_back_to_its_site_and_layer(card: ModelCard) -> None:
    columns = card.columns(list(SITES))
    assert len(columns) == 2 + 5 * card.n_layers
    for column in columns:
        assert parse_column(column.name) == (column.site, column.layer)


@pytest.mark.parametrize("name", ["12", "resid_post", "resid_post.x", "embed.1", "resid_pre.3", "resid_post.-1", ""])
def test_a_name_that_is_no_column_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a column name"):
        parse_column(name)


def test_hugging_face_indices_are_published_where_a_state_has_one(card: ModelCard) -> None:
    index = {column.name: column.hf_index for column in card.columns(list(SITES))}
    assert [index[f"resid_post.{layer}"] for layer in range(3)] == [1, 2, None]
    assert (index["embed"], index["final_norm"], index["heads.0"], index["resid_mid.2"]) == (0, 3, None, None)


def test_resid_pre_is_the_state_before_a_block_and_never_stored_twice(card: ModelCard) -> None:
    assert [column.name for column in card.columns(["resid_pre"])] == ["embed", "resid_post.0", "resid_post.1"]
    both = card.columns(["resid_post", "resid_pre"])
    assert [column.name for column in both] == ["embed", "resid_post.0", "resid_post.1", "resid_post.2"]


def test_columns_come_in_one_order_however_they_are_asked_for(card: ModelCard) -> None:
    assert card.columns(["heads", "embed"], [2, 0]) == card.columns(["embed", "heads"], [0, 2])


@pytest.mark.parametrize("n_layers", [2, 4, 10**9])
def test_a_card_whose_sites_do_not_fit_its_layers_is_not_believed(n_layers: int, card: ModelCard) -> None:
    ModelCard.model_validate_json(card.model_dump_json())
    with pytest.raises(ValidationError, match="layers"):
        ModelCard.model_validate_json(card.model_copy(update={"n_layers": n_layers}).model_dump_json())


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        ("all", list(range(8))),
        ("0:8:4", [0, 4]),
        ("2:", [2, 3, 4, 5, 6, 7]),
        (":-6", [0, 1]),
        ([7, 0], [0, 7]),
        ([-1], [7]),
    ],
)
def test_layers_are_resolved(layers: str | list[int], chosen: list[int]) -> None:
    assert resolve_layers(layers, 8) == chosen


@pytest.mark.parametrize(
    "layers", ["0:80:4", "every", "1", "5:5", "0:8:0", "0:8:-1", "a:b", "0:1:1:1", [8], [-9], [1, 1], [0, -8]]
)
def test_layers_the_model_does_not_have_are_refused_instead_of_clamped(layers: str | list[int]) -> None:
    with pytest.raises(ValueError, match="layer"):
        resolve_layers(layers, 8)


@given(start=st.integers(0, 30), stop=st.integers(0, 30), step=st.integers(1, 40))
def test_a_slice_of_layers_means_what_it_means_in_python(start: int, stop: int, step: int) -> None:
    meant = list(range(30))[start:stop:step]
    if meant:
        assert resolve_layers(f"{start}:{stop}:{step}", 30) == meant
    else:
        with pytest.raises(ValueError, match="selects none"):
            resolve_layers(f"{start}:{stop}:{step}", 30)


BAD_REQUESTS: dict[str, tuple[dict[str, object], str]] = {
    "unknown field": ({"stimuli": [{"id": "a", "text": "x", "code": "1"}]}, "Extra inputs"),
    "no stimuli": ({"stimuli": []}, "at least 1"),
    "two sources": ({"stimuli": [{"id": "a", "text": "x", "token_ids": [1]}]}, "exactly one of"),
    "no source": ({"stimuli": [{"id": "a"}]}, "exactly one of"),
    "same id": ({"stimuli": [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}]}, "'a' occurs twice"),
    "empty id": ({"stimuli": [{"id": "", "text": "x"}]}, "at least 1 character"),
    "a span after the end": ({"stimuli": [{"id": "a", "text": "xy", "spans": {"n": [1, 3]}}]}, "ends after"),
    "an empty span": ({"stimuli": [{"id": "a", "text": "xy", "spans": {"n": [1, 1]}}]}, "is empty"),
    "a span of tokens": ({"stimuli": [{"id": "a", "token_ids": [1], "spans": {"n": [0, 1]}}]}, "does not have"),
    "a span not given": (
        {"stimuli": [{"id": "a", "text": "x"}], "capture": {"select": [{"span": "n"}]}},
        "no span 'n'",
    ),
    "unknown site": ({"stimuli": [{"id": "a", "text": "x"}], "capture": {"sites": ["resid"]}}, "unknown site 'resid'"),
    "a site twice": ({"stimuli": [{"id": "a", "text": "x"}], "capture": {"sites": ["embed", "embed"]}}, "twice"),
    "a selector twice": ({"stimuli": [{"id": "a", "text": "x"}], "capture": {"select": ["last", "last"]}}, "twice"),
    "no layers": ({"stimuli": [{"id": "a", "text": "x"}], "capture": {"layers": []}}, "layers is empty"),
    "a float position": ({"stimuli": [{"id": "a", "text": "x"}], "capture": {"select": [1.5]}}, "valid integer"),
    "a huge token": ({"stimuli": [{"id": "a", "token_ids": [2**31]}]}, "less than"),
    "unknown dtype": ({"stimuli": [{"id": "a", "text": "x"}], "dtype": "float64"}, "float32"),
}


@pytest.mark.parametrize("fault", BAD_REQUESTS)
def test_a_malformed_request_is_refused_with_the_fault_named(fault: str) -> None:
    body, message = BAD_REQUESTS[fault]
    with pytest.raises(ValidationError, match=message):
        ActivationsRequest.model_validate(body)


def test_the_fingerprint_changes_with_every_fact_of_the_card(card: ModelCard) -> None:
    assert card.fingerprint == card.compute_fingerprint()
    changes: dict[str, object] = {
        "model": "other",
        "revision": "1",
        "dtype": "bfloat16",
        "n_layers": 4,
        "tokenizer_hash": "u",
        "engine": "torch",
        "versions": {"numpy": "3"},
    }
    prints = {card.model_copy(update={name: value}).signed().fingerprint for name, value in changes.items()}
    assert len(prints | {card.fingerprint}) == len(changes) + 1


def test_every_bfloat16_widens_exactly_and_its_finiteness_is_known() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    wide = to_float32(bits, "bfloat16")
    for value in (0x3F80, 0x0001, 0x7F7F, 0x8000, 0xC2F7):
        assert wide[value] == struct.unpack("<f", struct.pack("<I", value << 16))[0]
    finite = np.array([is_finite(bits[i : i + 1], "bfloat16") for i in range(2**16)])
    assert (finite == np.isfinite(wide)).all()
    assert 0 < (~finite).sum() < 2**10
    assert not math.isfinite(wide[0x7F80])
