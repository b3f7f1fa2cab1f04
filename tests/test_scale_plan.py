"""The arithmetic of docs/scale.md: right by an independent count, and the page shows what the script prints."""

import re
from pathlib import Path

import pytest
import scale_plan
import torch
from transformers import AutoConfig, AutoModel

SCALE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"


@pytest.mark.parametrize("shape", scale_plan.SHAPES, ids=lambda shape: shape.name)
def test_parameters_are_those_of_the_built_model(shape: scale_plan.Shape) -> None:
    config = AutoConfig.for_model(
        "llama", hidden_size=shape.d_model, intermediate_size=shape.d_ffn, num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads, num_key_value_heads=shape.n_kv_heads, head_dim=shape.d_head,
        vocab_size=shape.vocab,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_a_batch_of_the_tokens_allowed_fits_and_one_more_does_not() -> None:
    room = scale_plan.Room(scale_plan.BIG)
    for n_sites, kept in ((3, 0.05), (1, 1.0), (3, 1.0)):
        tokens = room.batch_tokens(n_sites, kept)
        need = room.token_bytes + kept * scale_plan.BIG.row_bytes(n_sites)
        assert tokens > 0
        assert tokens * need <= room.free_bytes < (tokens + 1) * need


def numbers(cells: str) -> list[str]:
    return re.findall(r"\d[\d.]*", cells.replace(",", "").replace("%", ""))


def test_the_page_shows_the_numbers_that_the_script_prints() -> None:
    page = SCALE.read_text(encoding="utf-8")
    rows = {tuple(numbers(line)) for line in page.splitlines() if line.startswith("|")}
    assert len(rows) > 20, "the page has tables"
    for make in (scale_plan.batch_table, scale_plan.rate_table):
        for row in make():
            assert any(set(numbers(" ".join(row[1:]))) <= set(shown) for shown in rows), row
