"""Tokens and the characters they cover."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from stratoscope_server.engines.pretrained.tokenizing import FastTokenizer
from stratoscope_server.selection import select_rows
from stratoscope_wire import Message, SpanSelector

ODD_TEXTS = (
    "A church and organ",
    "  two  spaces\tand\n\na new line ",
    "Zürich, e\u0301te\u0301, 東京 and 🎹🎻 together",
    "family 👨‍👩‍👧 x",
    "the organ<s> and </s>",
    "",
)


@pytest.fixture(scope="session")
def tokenizer(load_tiny: Callable[..., Any]) -> Any:
    return load_tiny("llama").tokenizer


@pytest.mark.parametrize("architecture", ["gemma2", "gpt2", "llama", "mistral", "phi3", "qwen2"])
@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_tokens_are_those_of_transformers(
    architecture: str, add_special_tokens: bool, load_tiny: Callable[..., Any], tiny_folder: Callable[[str], Path]
) -> None:
    reference = AutoTokenizer.from_pretrained(tiny_folder(architecture))
    for text in ODD_TEXTS:
        expected = reference(text, add_special_tokens=add_special_tokens)["input_ids"]
        found = load_tiny(architecture).tokenizer.encode(text, add_special_tokens=add_special_tokens)
        assert found.token_ids.tolist() == expected
        assert found.token_ids.dtype == found.offsets.dtype == np.int32
        assert found.offsets.shape == (len(expected), 2)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_offsets_are_code_points_without_surrounding_space(text: str, tokenizer: FastTokenizer) -> None:
    encoded = tokenizer.encode(text, add_special_tokens=True)
    assert encoded.offsets[0].tolist() == [0, 0], "the added <s> covers nothing"
    covered = set()
    for start, end in encoded.offsets[1:].tolist():
        assert 0 <= start < end <= len(text)
        piece = text[start:end]
        assert piece == piece.strip() or not piece.strip()
        covered |= set(range(start, end))
    assert {i for i, character in enumerate(text) if not character.isspace()} <= covered


def test_a_span_takes_the_tokens_of_its_word_alone(tokenizer: FastTokenizer) -> None:
    text = "🎹 A church and organ"
    encoded = tokenizer.encode(text, add_special_tokens=True)
    whole = {"word": (4, 10), "with the space before": (3, 10), "with the space after": (4, 11)}
    assert text[slice(*whole["word"])] == "church"
    taken = [
        select_rows([SpanSelector(span="s", take="all")], len(encoded.token_ids), {"s": span}, encoded.offsets)
        for span in whole.values()
    ]
    positions = taken[0][0].positions
    assert len(positions) >= 1
    assert all(np.array_equal(rows[0].positions, positions) for rows in taken)
    covered = encoded.offsets[positions]
    assert (covered[:, 0].min(), covered[:, 1].max()) == (4, 10)


def test_every_token_of_a_character_split_into_bytes_covers_it(tokenizer: FastTokenizer) -> None:
    encoded = tokenizer.encode("a 🎹", add_special_tokens=False)
    covering = [offset for offset in encoded.offsets.tolist() if offset == [2, 3]]
    assert len(covering) >= 3


def test_long_texts_are_not_truncated(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    definition["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 1,
        "pad_type_id": 0,
        "pad_token": "</s>",
    }
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    tokenizer = FastTokenizer(folder)
    n_short, n_long = (len(tokenizer.encode("x" * n, add_special_tokens=True).token_ids) for n in (2, 5000))
    assert n_short < 9
    assert n_long > 1000


def test_chats_are_rendered_up_to_the_generation_prompt(
    tokenizer: FastTokenizer, tiny_folder: Callable[[str], Path]
) -> None:
    messages = [Message(role="system", content="Be brief."), Message(role="user", content="Hi 🎹")]
    reference = AutoTokenizer.from_pretrained(tiny_folder("llama"))
    chat = [message.model_dump() for message in messages]
    expected = reference.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    found = tokenizer.encode_chat(messages)
    assert found.token_ids.tolist() == expected
    assert expected[-1] == reference.convert_tokens_to_ids("<|assistant|>")


def with_template(folder: Path, tmp_path: Path, template: str | None) -> FastTokenizer:
    copied = shutil.copytree(folder, tmp_path / "model")
    (copied / "chat_template.jinja").unlink()
    if template is not None:
        (copied / "chat_template.jinja").write_text(template)
    return FastTokenizer(copied)


def test_a_template_that_refuses_says_why(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    tokenizer = with_template(tiny_folder("llama"), tmp_path, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match="refuses the messages: roles must alternate"):
        tokenizer.encode_chat([Message(role="user", content="Hi")])


def test_a_model_without_template_refuses_messages(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    tokenizer = with_template(tiny_folder("llama"), tmp_path, None)
    with pytest.raises(ValueError, match="no chat template"):
        tokenizer.encode_chat([Message(role="user", content="Hi")])


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        (
            "\n{% if strftime_now is defined %}{% set day = strftime_now('%Y-%m-%d') %}{{ day }}{% endif %}",
            "\n2024-07-26",
        ),
    ],
)
def test_a_template_that_prints_the_date_gives_the_same_tokens_every_day(
    template: str | None, rendered: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    tokenizer = with_template(tiny_folder("llama"), tmp_path, template)
    found = tokenizer.encode_chat([Message(role="user", content="Hi")])
    assert found.token_ids.tolist() == tokenizer.encode(rendered, add_special_tokens=False).token_ids.tolist()


def test_the_hash_changes_with_the_definition_and_the_template(
    tokenizer: FastTokenizer, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    assert FastTokenizer(tiny_folder("llama")).hash == tokenizer.hash
    assert with_template(tiny_folder("llama"), tmp_path, "{{ 1 }}").hash != tokenizer.hash


def test_threads_may_tokenise_at_once(tokenizer: FastTokenizer) -> None:
    texts = [f"{text} {index}" for index, text in enumerate(ODD_TEXTS * 20)]
    chat = [Message(role="user", content="Hi")]

    def encode(text: str) -> list[int]:
        encoded = tokenizer.encode(text, add_special_tokens=len(text) % 2 == 0)
        return [*encoded.token_ids.tolist(), *tokenizer.encode_chat(chat).token_ids.tolist()]

    expected = [encode(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(encode, texts)) == expected
