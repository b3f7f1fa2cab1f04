"""The synthetic engine: activations computed from token ids, with structure planted at known layers.

Every value is noise, a fixed function of the tokens up to its position, of the site, layer and dimension; on top of it,
two binary facts are written along fixed directions with a gain that depends on the layer:

- the *item* fact of a token, strongest at layer 3 of 12: a bit of the token id itself;
- the *context* fact of a prefix, strongest at layer 8: the exclusive or of the bits of all its tokens, which no
  single token tells.

So a probe of the item fact must peak at layer 3 and one of the context fact at layer 8, at every site of a layer, and
neither can be read from ``embed`` (item gain 0.02) beyond what the noise allows.

Other facts, of given texts at given layers, can be planted from a file (`plants`): so a whole study can be run against
a known truth.
"""

import re
import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from stratoscope_server.engines.batched import BatchedEngine
from stratoscope_server.engines.plants import Plants, direction
from stratoscope_server.engines.protocol import DEFAULT_STALL_SECONDS, Encoded, EngineError, Prompt
from stratoscope_server.selection import row_keys
from stratoscope_wire import Block, Column, Message, ModelCard, __version__
from stratoscope_wire.card import site_cards
from stratoscope_wire.dtypes import Values
from stratoscope_wire.request import Dtype
from stratoscope_wire.sites import SITES

N_LAYERS: Final = 12
D_MODEL: Final = 64
N_HEADS: Final = 4
D_HEAD: Final = 16
VOCAB_SIZE: Final = 50_000
MAX_TOKENS: Final = 4096
START_TOKEN: Final = 0
ITEM_LAYER: Final = 3
CONTEXT_LAYER: Final = 8

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint64]


def token_bit(token_ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the item fact of each token: 0 or 1, int64 array of the shape of `token_ids`."""
    return (_mix(np.asarray(token_ids, np.uint64)) & np.uint64(1)).astype(np.int64)


def context_bit(token_ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the context fact at each position: the exclusive or of the item facts up to it."""
    return np.bitwise_xor.accumulate(token_bit(token_ids))


class SyntheticTokenizer:
    """One token per word or punctuation mark: a start token, then the CRC-32 of each, modulo the vocabulary."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Encoded:
        """Tokenise a text; see `Tokenizer.encode`."""
        words = list(re.finditer(r"\w+|[^\w\s]", text))
        ids = [1 + zlib.crc32(word.group().encode()) % (VOCAB_SIZE - 1) for word in words]
        spans = [word.span() for word in words]
        if add_special_tokens:
            ids, spans = [START_TOKEN, *ids], [(0, 0), *spans]
        return Encoded(np.array(ids, np.int32), np.array(spans, np.int32).reshape(-1, 2))

    def encode_chat(self, messages: Sequence[Message]) -> Encoded:
        """Tokenise each turn as its role, a colon and its content."""
        text = "\n".join(f"{message.role}: {message.content}" for message in messages)
        return self.encode(text, add_special_tokens=True)


class SyntheticRunner:
    """Computes batches; see the module's text.

    Parameters
    ----------
    plants
        Facts beside those that are always there, and the number of layers.
    """

    tokenizer = SyntheticTokenizer()

    def __init__(self, plants: Plants | None = None) -> None:
        self._plants = plants or Plants(n_layers=N_LAYERS)
        self._planted = _find_planted(self._plants, self.tokenizer)

    @property
    def card(self) -> ModelCard:
        """A card like that of a small Llama."""
        n_layers = self._plants.n_layers
        return ModelCard(
            model="synthetic",
            revision=self._plants.revision,
            architecture="synthetic",
            dtype="float32",
            n_layers=n_layers,
            d_model=D_MODEL,
            n_heads=N_HEADS,
            d_head=D_HEAD,
            vocab_size=VOCAB_SIZE,
            max_tokens=MAX_TOKENS,
            tokenizer_hash="crc32-words-1",
            engine="synthetic",
            versions={"stratoscope-server": __version__},
            sites=site_cards(n_layers, D_MODEL, N_HEADS * D_HEAD),
        ).signed()

    def run(self, prompts: Sequence[Prompt], columns: Sequence[Column], dtype: Dtype) -> Block:
        """Compute the rows of all prompts; see `Runner.run`."""
        hashes = [_prefix_hash(np.asarray(prompt.token_ids, np.uint64)) for prompt in prompts]
        values = [
            to_wire(
                np.concatenate([self._rows(*one, column) for one in zip(prompts, hashes, strict=True)]), column, dtype
            )
            for column in columns
        ]
        return Block(*row_keys(prompts), values)

    def _rows(self, prompt: Prompt, hashes: Words, column: Column) -> Floats:
        states = activations(prompt.token_ids, column, hashes)
        for number, value in self._planted.get(np.asarray(prompt.token_ids, np.int32).tobytes(), ()):
            fact = self._plants.facts[number]
            gain = (
                fact.gains[column.site][column.layer] if column.layer is not None and column.site in fact.gains else 0
            )
            states[-1] += np.asarray(value * gain * direction(fact.name, column.width), np.float32)
        parts = [
            states[spec.positions].mean(axis=0, keepdims=True) if spec.pooled else states[spec.positions]
            for spec in prompt.rows
        ]
        return np.concatenate(parts)


def load_engine(
    max_batch_tokens: int | None = None,
    plants: Plants | None = None,
    stall_seconds: float = DEFAULT_STALL_SECONDS,
) -> BatchedEngine:
    """Return the synthetic engine."""
    return BatchedEngine(SyntheticRunner(plants), max_batch_tokens, stall_seconds, merge=False)


def _find_planted(plants: Plants, tokenizer: SyntheticTokenizer) -> dict[bytes, list[tuple[int, float]]]:
    """Numbers and values of the facts of every text, by the bytes of its token ids."""
    found: dict[bytes, list[tuple[int, float]]] = {}
    for number, fact in enumerate(plants.facts):
        for text, value in fact.values.items():
            ids = tokenizer.encode(text, add_special_tokens=True).token_ids
            found.setdefault(ids.tobytes(), []).append((number, value))
    return found


def activations(token_ids: npt.ArrayLike, column: Column, hashes: Words | None = None) -> Floats:
    """Compute one column for one prompt.

    Parameters
    ----------
    token_ids : int array of shape (n_tokens,)
    column
        The site and layer.
    hashes : uint64 array of shape (n_tokens,)
        Of every prefix, where they are known; the same for all columns.

    Returns
    -------
    float32 array of shape (n_tokens, width).
    """
    ids = np.asarray(token_ids, np.uint64)
    salt = _mix(np.uint64(SITES.index(column.site) * 1000 + (column.layer or 0)))
    dimensions = _mix(np.arange(column.width, dtype=np.uint64) + salt)
    prefixes = _prefix_hash(ids) if hashes is None else hashes
    noise = _uniform(_mix(prefixes[:, None] ^ dimensions[None, :]))
    directions = _uniform(_mix(np.arange(2 * column.width, dtype=np.uint64) + np.uint64(17))).reshape(2, -1)
    facts = np.stack([token_bit(ids), context_bit(ids)], axis=1) * 2.0 - 1.0
    gains = [_gain(column.layer, ITEM_LAYER), _gain(column.layer, CONTEXT_LAYER)]
    return np.asarray(noise + facts * gains @ directions, np.float32)


def to_wire(values: Floats, column: Column, dtype: Dtype) -> Values:
    """Convert float32 values to the wire's type, rounding to nearest even.

    Raises
    ------
    EngineError
        If a value does not fit float16.
    """
    if dtype == "bfloat16":
        bits = values.view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return (rounded >> np.uint32(16)).astype(np.uint16)
    if dtype == "float16":
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise EngineError(
                "float16_overflow", f"column {column.name} overflows float16: ask for float32", status=422
            )
        return values.astype(np.float16)
    return values


def _gain(layer: int | None, peak: int) -> float:
    return 0.02 if layer is None else float(np.exp(-(((layer - peak) / 2.0) ** 2)))


def _prefix_hash(ids: Words) -> Words:
    state = np.zeros(1, np.uint64)
    hashes = np.empty(len(ids), np.uint64)
    for position, token in enumerate(_mix(ids + np.uint64(1))):
        state = _mix(state ^ token)
        hashes[position] = state[0]
    return hashes


def _mix(words: Words | np.uint64) -> Words:
    """Return SplitMix64's finaliser of each word (Steele, Lea & Flood 2014)."""
    mixed = np.atleast_1d(np.asarray(words, np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _uniform(words: Words) -> npt.NDArray[np.float64]:
    """Map words to [-1, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
