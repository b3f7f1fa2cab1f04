import json
import math
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from stratoscope_server.engines import synthetic
from stratoscope_server.engines.plants import Plants
from stratoscope_server.engines.protocol import EngineError, Prompt
from stratoscope_server.selection import select_rows
from stratoscope_wire import Column
from stratoscope_wire.sites import SITES

CARD = synthetic.SyntheticRunner().card
TEXTS = [f"object {number}" for number in range(200)]


def column(site: str, layer: int | None) -> Column:
    return CARD.columns([site], [layer or 0])[0]


def prompts(n_prompts: int, n_tokens: int, seed: int = 0) -> list[Prompt]:
    rng = np.random.default_rng(seed)
    rows = select_rows(["last"], n_tokens, {}, np.zeros((n_tokens, 2), np.int32))
    ids = rng.integers(1, synthetic.VOCAB_SIZE, size=(n_prompts, n_tokens)).astype(np.int32)
    return [Prompt(str(index), row, rows) for index, row in enumerate(ids)]


def accuracy(site: str, layer: int | None, fact: str) -> float:
    sample = prompts(400, 3)
    rows = synthetic.SyntheticRunner().run(sample, [column(site, layer)], "float32").values[0]
    facts = synthetic.token_bit if fact == "item" else synthetic.context_bit
    labels = [int(facts(prompt.token_ids)[-1]) for prompt in sample]
    assert 0.4 < np.mean(labels) < 0.6
    return float(cross_val_score(LogisticRegression(max_iter=1000), rows, labels, cv=5).mean())


@pytest.mark.parametrize(("fact", "layer"), [("item", synthetic.ITEM_LAYER), ("context", synthetic.CONTEXT_LAYER)])
def test_a_planted_fact_is_read_where_it_was_planted_and_nowhere_far_from_it(fact: str, layer: int) -> None:
    assert accuracy("resid_post", layer, fact) > 0.9
    assert accuracy("mlp_out", layer, fact) > 0.9
    assert abs(accuracy("resid_post", (layer + 6) % 12, fact) - 0.5) < 0.1
    assert abs(accuracy("embed", None, fact) - 0.5) < 0.1


def test_the_context_fact_cannot_be_told_from_the_last_token() -> None:
    ids = np.array([prompt.token_ids for prompt in prompts(4000, 3)])
    context = np.array([synthetic.context_bit(row)[-1] for row in ids])
    assert abs(np.corrcoef(context, synthetic.token_bit(ids[:, -1]))[0, 1]) < 0.05


def test_a_row_depends_on_the_tokens_up_to_it_and_on_nothing_else() -> None:
    site = column("resid_mid", 5)
    whole = synthetic.activations([5, 6, 7, 8], site)
    assert whole[:2].tobytes() == synthetic.activations([5, 6], site).tobytes()
    assert not np.array_equal(whole[1], synthetic.activations([9, 6], site)[1])
    assert not np.array_equal(whole, synthetic.activations([5, 6, 7, 8], column("resid_mid", 6)))
    assert not np.array_equal(whole, synthetic.activations([5, 6, 7, 8], column("mlp_out", 5)))


def test_the_values_are_those_of_the_definition_written_out_in_plain_integers() -> None:
    """Tutorials and tests rest on these numbers; a change needs a new revision in the card."""
    tokens, layer, n_dimensions = [1, 504], 3, 64
    mask = 2**64 - 1

    def mix(word: int) -> int:
        word = (word + 0x9E3779B97F4A7C15) & mask
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & mask
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask
        return word ^ (word >> 31)

    def uniform(word: int) -> float:
        return (word >> 11) / 2**52 - 1.0

    prefix = 0
    for token in tokens:
        prefix = mix(prefix ^ mix(token + 1))
    item = 2 * (mix(tokens[-1]) & 1) - 1
    context = 2 * ((mix(tokens[0]) ^ mix(tokens[1])) & 1) - 1
    gains = [math.exp(-(((layer - peak) / 2) ** 2)) for peak in (3, 8)]
    salt = mix(2 * 1000 + layer)
    reference = [
        uniform(mix(prefix ^ mix((dimension + salt) & mask)))
        + item * gains[0] * uniform(mix(dimension + 17))
        + context * gains[1] * uniform(mix(n_dimensions + dimension + 17))
        for dimension in range(n_dimensions)
    ]
    assert SITES.index("resid_post") == 2
    values = synthetic.activations(tokens, column("resid_post", layer))[-1]
    np.testing.assert_allclose(values, reference, rtol=1e-6, atol=1e-7)
    assert float(values[0]) == pytest.approx(-0.63546, abs=1e-5)


@pytest.mark.parametrize("value", [1.0, -2.5, 1.00390625, 1.01171875, 3.1415927, 1e-40, 65504.0, -0.0])
def test_bfloat16_bits_round_to_nearest_even(value: float) -> None:
    values = np.array([[value]], np.float32)
    bits = int(synthetic.to_wire(values, column("embed", None), "bfloat16")[0, 0])
    candidates = [b << 16 for b in (bits - 1 & 0xFFFF, bits, bits + 1 & 0xFFFF)]
    distance = [abs(struct.unpack("<f", struct.pack("<I", b))[0] - float(values[0, 0])) for b in candidates]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert distance[1] == np.nanmin(distance)
    if distance.count(distance[1]) > 1:
        assert bits % 2 == 0


def test_float16_is_refused_where_a_value_would_overflow() -> None:
    fits = np.array([[65504.0, 1.0]], np.float32)
    assert synthetic.to_wire(fits, column("embed", None), "float16").dtype == np.float16
    with pytest.raises(EngineError, match="embed overflows float16") as caught:
        synthetic.to_wire(fits * 2, column("embed", None), "float16")
    assert caught.value.status == 422


def planted(path: Path, **changes: Any) -> Plants:
    rng = np.random.default_rng(3)
    values = {text: float(value) for text, value in zip(TEXTS, rng.choice([-1.0, 1.0], len(TEXTS)), strict=True)}
    gains = {"attn_out": [0.0] * 6 + [0.5] + [0.0] * 3}
    content = {"n_layers": 10, "facts": [{"name": "heavy", "values": values, "gains": gains}], **changes}
    path.write_text(json.dumps(content))
    return Plants.read(path)


def read_fact(plants: Plants, site: str, layer: int) -> float:
    runner = synthetic.SyntheticRunner(plants)
    ids = [runner.tokenizer.encode(text, add_special_tokens=True).token_ids for text in TEXTS]
    rows = [select_rows(["last"], len(one), {}, np.zeros((len(one), 2), np.int32)) for one in ids]
    given = [Prompt(text, one, row) for text, one, row in zip(TEXTS, ids, rows, strict=True)]
    X = runner.run(given, runner.card.columns([site], [layer]), "float32").values[0]
    y = [plants.facts[0].values[text] > 0 for text in TEXTS]
    return float(cross_val_score(LogisticRegression(max_iter=1000), X, y, cv=5).mean())


def test_a_fact_planted_from_a_file_is_read_at_its_site_and_layer_alone(tmp_path: Path) -> None:
    plants = planted(tmp_path / "plants.json")
    assert synthetic.SyntheticRunner(plants).card.n_layers == 10
    assert read_fact(plants, "attn_out", 6) > 0.9
    assert abs(read_fact(plants, "attn_out", 5) - 0.5) < 0.12
    assert abs(read_fact(plants, "mlp_out", 6) - 0.5) < 0.12


def test_models_with_other_plants_are_other_models(tmp_path: Path) -> None:
    one, other = planted(tmp_path / "a.json"), planted(tmp_path / "b.json", facts=[])
    prints = {synthetic.SyntheticRunner(plants).card.fingerprint for plants in (one, other, None)}
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"facts": [{"name": "x", "values": {}, "gains": {"attn_out": [1.0]}}]}, "1 gains for 10 layers"),
        ({"facts": [{"name": "x", "values": {}, "gains": {"embed": [1.0] * 10}}]}, "no site with layers"),
        ({"layers": 3}, "Extra inputs"),
        ({"n_layers": 0}, "greater than or equal to 1"),
    ],
)
def test_plants_that_cannot_be_used_are_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        planted(tmp_path / "plants.json", **changes)
    with pytest.raises(ValueError, match="No such file"):
        Plants.read(tmp_path / "nowhere.json")
