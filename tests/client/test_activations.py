"""Activations of texts, held in memory."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from stratoscope.activations import Activations
from stratoscope.async_client import AsyncClient
from stratoscope.client import Client
from stratoscope.columns import find_column
from stratoscope.errors import InvalidRequestError
from stratoscope_wire import Column, SpanSelector, Stimulus

if TYPE_CHECKING:
    from tests.client.conftest import FaultServer

TEXTS = ["A church and organ", "a cat", "Zürich and its lake", "x"]


def column(acts: Activations, site: str, layer: int | None) -> Column:
    return find_column(acts.columns, site, layer, acts.card.n_layers)


def test_rows_are_in_the_order_of_the_texts_and_hold_the_models_values(client: Client, server: "FaultServer") -> None:
    acts = client.activations(TEXTS, sites=["resid_post", "heads"])
    assert list(acts) == [(site, layer) for site in ("resid_post", "heads") for layer in range(3)]
    for site, layer in (("resid_post", 0), ("resid_post", 2), ("heads", 1)):
        truth = np.stack([server.truth(text, column(acts, site, layer)) for text in TEXTS])
        values = acts[site, layer]
        assert isinstance(values, np.ndarray)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, truth)


def test_many_texts_go_out_in_several_requests_and_come_back_as_one(client: Client, server: "FaultServer") -> None:
    server.limits = server.default_limits(max_stimuli=7)
    texts = [f"text number {number}" for number in range(40)]
    acts = client.activations(texts, layers=[1])
    assert [len(post.ids) for post in server.posts] == [7, 7, 7, 7, 7, 5]
    truth = np.stack([server.truth(text, acts.columns[0]) for text in texts])
    np.testing.assert_array_equal(acts["resid_post", 1], truth)


def test_a_request_that_turns_out_too_large_is_halved(client: Client, server: "FaultServer") -> None:
    texts = [f"text number {number}" for number in range(16)]
    client.limits()
    server.limits = server.default_limits(max_tokens_per_request=70)
    acts = client.activations(texts, layers=[1])
    assert [len(post.ids) for post in server.posts][:3] == [16, 8, 4]
    np.testing.assert_array_equal(
        acts["resid_post", 1], np.stack([server.truth(text, acts.columns[0]) for text in texts])
    )


def test_the_selector_all_gives_one_array_per_text(client: Client, server: "FaultServer") -> None:
    acts = client.activations(TEXTS, layers=[0], select=["all"])
    values = acts["resid_post", 0]
    assert [array.shape for array in values] == [(len(text) + 1, 8) for text in TEXTS]
    for text, array in zip(TEXTS, values, strict=True):
        for position in range(len(text) + 1):
            np.testing.assert_array_equal(array[position], server.truth(text, acts.columns[0], position))
    assert [list(positions) for positions in acts.positions["all"]][1] == list(range(6))
    assert [list(tokens) for tokens in acts.token_ids["all"]][3] == [1, ord("x") + 2]


def test_several_selectors_are_told_apart_by_a_third_key(client: Client, server: "FaultServer") -> None:
    spans: list[dict[str, tuple[int, int]]] = [{"noun": (2, 8)}, {"noun": (2, 5)}]
    select: list[str | int | SpanSelector] = ["last", -2, SpanSelector(span="noun", take="last"), "noun:mean", "all"]
    acts = client.activations(TEXTS[:2], layers=[2], select=select, spans=spans)
    assert [key[-1] for key in acts] == ["last", "-2", "noun:last", "noun:mean", "all"]
    with pytest.raises(KeyError, match="name a selector"):
        acts["resid_post", 2]
    site = acts.columns[0]
    np.testing.assert_array_equal(acts["resid_post", 2, "-2"][1], server.truth("a cat", site, -2))
    np.testing.assert_array_equal(acts["resid_post", 2, "noun:last"][0], server.truth(TEXTS[0], site, 8))
    mean = np.mean([server.truth("a cat", site, position) for position in (3, 4, 5)], axis=0)
    np.testing.assert_allclose(acts["resid_post", 2, "noun:mean"][1], mean, rtol=1e-6)
    assert list(acts.positions["noun:mean"]) == [-1, -1]
    assert list(acts.positions["noun:last"]) == [8, 5]


def test_bfloat16_is_widened_exactly(client: Client, server: "FaultServer") -> None:
    narrow = client.activations(TEXTS, dtype="bfloat16")
    assert server.posts[-1].request.dtype == "bfloat16"
    for key, values in client.activations(TEXTS).items():
        np.testing.assert_array_equal(narrow[key], values)


def test_aliases_negative_layers_and_names_find_the_same_column(client: Client) -> None:
    acts = client.activations(TEXTS, sites=["embed", "resid_post"])
    np.testing.assert_array_equal(acts["resid_pre", 0], acts["embed", None])
    np.testing.assert_array_equal(acts["resid_pre", 2], acts["resid_post", 1])
    np.testing.assert_array_equal(acts["resid_post", -1], acts["resid_post", 2])
    np.testing.assert_array_equal(acts["resid_post.1"], acts["resid_post", 1])
    np.testing.assert_array_equal(acts["embed"], acts["embed", None])
    with pytest.raises(KeyError, match=r"mlp_out\.1 was not captured; there are embed, resid_post\.0"):
        acts["mlp_out", 1]


def test_stimuli_keep_their_own_ids(client: Client, server: "FaultServer") -> None:
    stimuli = [Stimulus(id="tokens", token_ids=[5, 6]), Stimulus(id="words", text="a cat")]
    acts = client.activations(stimuli, layers=[0])
    assert acts.ids == ("tokens", "words")
    np.testing.assert_array_equal(acts["resid_post", 0][0], server.truth(stimuli[0], acts.columns[0]))


def test_special_tokens_can_be_left_out(client: Client, server: "FaultServer") -> None:
    acts = client.activations(["a cat"], layers=[0], add_special_tokens=False)
    np.testing.assert_array_equal(acts["resid_post", 0][0], server.truth("a cat", acts.columns[0], special=False))
    assert list(acts.positions["last"]) == [4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"texts": "a cat"}, "single text", id="one-text"),
        pytest.param({"texts": []}, "texts is empty", id="no-texts"),
        pytest.param({"sites": ["residual"]}, "unknown site 'residual'", id="unknown-site"),
        pytest.param({"sites": "resid_post"}, "give a list", id="site-as-text"),
        pytest.param({"layers": [7]}, "layer 7 does not exist: the model has 3 layers", id="no-such-layer"),
        pytest.param({"select": ["middle:center"]}, "is no selector", id="unknown-take"),
        pytest.param({"select": ["noun:last"]}, "has no span 'noun'", id="missing-span"),
        pytest.param({"spans": [{}]}, "4 texts and 1 spans", id="spans-too-few"),
        pytest.param({"texts": ["a", "b\ud800"]}, "stimulus '1' is not valid Unicode", id="lone-surrogate"),
        pytest.param({"texts": [Stimulus(id="1", text="a"), Stimulus(id="1", text="b")]}, "'1' occurs twice", id="ids"),
    ],
)
def test_what_no_server_would_take_is_refused_before_it_is_sent(
    client: Client, server: "FaultServer", arguments: dict[str, object], message: str
) -> None:
    call: Callable[..., object] = client.activations
    with pytest.raises(InvalidRequestError, match=message):
        call(**{"texts": TEXTS, **arguments})
    assert server.posts == []


async def _asynchronous(url: str, sites: list[str], select: list[str]) -> Activations:
    async with AsyncClient(url, timeout=5) as client:
        return await client.activations(TEXTS, sites=sites, select=select)


def test_both_clients_give_the_same(client: Client, server: "FaultServer") -> None:
    server.limits = server.default_limits(max_stimuli=2)
    sites, select = ["resid_post", "final_norm"], ["last", "all"]
    asynchronous = asyncio.run(_asynchronous(server.url, sites, select))
    n_posts = len(server.posts)
    assert n_posts == 2
    blocking = client.activations(TEXTS, sites=sites, select=select)
    assert len(server.posts) == 2 * n_posts
    assert list(asynchronous) == list(blocking)
    for key, values in blocking.items():
        for mine, other in zip(values, asynchronous[key], strict=True):
            np.testing.assert_array_equal(mine, other)


def test_a_real_server_is_understood(start_server: Callable[..., AbstractContextManager[str]]) -> None:
    with start_server(max_stimuli=2) as url, Client(url) as client:
        card = client.model()
        client.ready()
        acts = client.activations(TEXTS, sites=["embed", "resid_post"], select=["last", "all"], dtype="float32")
        alone = client.activations(TEXTS[2:3], sites=["embed", "resid_post"], select=["last", "all"])
        assert acts.card == card
        assert len(acts) == 2 * (1 + card.n_layers)
        for key, values in acts.items():
            np.testing.assert_allclose(values[2], alone[key][0], rtol=1e-5, atol=1e-6)
            if key[-1] == "all":
                np.testing.assert_array_equal(values[1][-1], acts[*key[:2], "last"][1])
