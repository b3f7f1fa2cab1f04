"""Running variants and comparing what they give."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import httpx2
import numpy as np

from enginebench.client import deliver, deliver_lens, lens_states, requests, states_of
from enginebench.processor_time import ProcessorTime
from enginebench.servers import Server
from enginebench.workload import SITES, Shape, Variant
from stratoscope import Client
from stratoscope_wire.request import Dtype

LENS_CONCURRENCY: Final = 256
"""Prompts that the baseline has at once, each an HTTP request of its own; vLLM batches as many."""

BOUNDS: Final = {"bfloat16": 2e-2, "float32": 1e-5}
"""Largest relative L2 distance of a column between ours and the baseline's: two engines, two step layouts."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of one variant: `n_bytes` is what the client received in all, `processor` seconds by part."""

    variant: str
    tokens: float
    seconds: float
    n_bytes: float = 0.0
    processor: Mapping[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Tokens of prompts per second."""
        return self.tokens / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """Return what is written down."""
        return {**asdict(self), "rate": self.rate}


class Bench:
    """Two servers and how they are used.

    Parameters
    ----------
    ours, lens
        The servers.
    shape
        Of the texts of one run.
    dtype
        Of model and wire.
    stimuli_per_request, concurrency
        How the client asks.
    """

    def __init__(
        self, ours: Server, lens: Server | None, shape: Shape, dtype: Dtype, stimuli_per_request: int, concurrency: int
    ) -> None:
        self._ours, self._lens = ours, lens
        self._shape = shape
        self._dtype = dtype
        self._size, self._concurrency = stimuli_per_request, concurrency
        self._client = Client(ours.url, max_retries=0, timeout=600)
        self._hooks: tuple[str, ...] | None = None
        self._n_runs = 0

    def warm_up(self, variants: Sequence[Variant]) -> Iterator[str]:
        """Run everything once, and hold the baseline's values against ours before either is timed."""
        for variant in variants:
            self.run(variant, self._next_texts())
        if self._lens is not None:
            yield f"ours against the baseline, relative L2 at worst: {self.compare():.1e}"

    def round(self, index: int, variants: Sequence[Variant]) -> list[Measurement]:
        """Run each variant once; every other round backwards."""
        found = []
        for variant in variants if index % 2 == 0 else list(reversed(variants)):
            found.append(self.timed(variant))
            print(f"round {index}: {variant.name}: {found[-1].rate:.0f} tokens/s", flush=True)
        return found

    def timed(self, variant: Variant) -> Measurement:
        """Run a variant on fresh texts, and count the processor time that it takes."""
        server = self._lens if variant.needs_baseline else self._ours
        assert server is not None
        texts = self._next_texts()
        time = ProcessorTime(server.pid)
        found = self.run(variant, texts)
        return replace(found, processor=time.spent())

    def run(self, variant: Variant, texts: Sequence[str]) -> Measurement:
        """Run texts one way."""
        self._n_runs += 1
        if variant.needs_baseline:
            self._set_hooks(variant)
        if variant.kind == "off":
            return self._told(variant, self._post(self._ours, "off", {"texts": texts}))
        if variant.kind == "bare":
            assert self._lens is not None
            return self._told(variant, self._post(self._lens, "off", {"texts": texts}))
        if variant.kind == "consumed":
            order: dict[str, object] = {
                "texts": texts,
                "sites": variant.sites,
                "select": variant.select,
                "dtype": self._dtype,
            }
            order |= {"stimuli_per_request": self._size, "concurrency": self._concurrency}
            return self._told(variant, self._post(self._ours, "consumed", order))
        if variant.kind == "delivered":
            wanted = requests(texts, variant.sites, variant.select, self._dtype, self._size)
            told = deliver(self._client, wanted, self._concurrency)
            n_tokens = sum(self._client.plan(request).n_tokens for request in wanted)
            return Measurement(variant.name, n_tokens, told["seconds"], told["bytes"])
        assert variant.kind == "lens"
        told = self._deliver_lens(texts, compress=variant.compress)
        return Measurement(variant.name, told["tokens"], told["seconds"], told["bytes"])

    def compare(self) -> float:
        """Return the largest relative L2 distance of a column between the baseline's values and ours.

        Raises
        ------
        ValueError
            If it is too large for what follows to compare like with like.
        """
        self._set_hooks(Variant("", "lens"))
        worst = 0.0
        for text in self._next_texts()[:4]:
            (wanted,) = requests([text], SITES, "all", self._dtype, 1)
            ours = states_of(self._client.fetch(wanted), self._dtype)
            theirs = dict(lens_states(self._deliver_lens([text], compress=True)["last"]))
            if ours.keys() != theirs.keys():
                raise ValueError(f"the baseline has not our columns: {sorted(ours.keys() ^ theirs.keys())[:3]}")
            for name, expected in theirs.items():
                error = float(np.linalg.norm(ours[name] - expected) / np.linalg.norm(expected))
                if not error <= BOUNDS[self._dtype]:
                    raise ValueError(f"{name} differs from the baseline's by {error:.1e}")
                worst = max(worst, error)
        return worst

    def _deliver_lens(self, texts: Sequence[str], *, compress: bool) -> dict[str, Any]:
        assert self._lens is not None
        self._n_runs += 1
        run = f"r{self._n_runs}"
        return asyncio.run(deliver_lens(self._lens.url, texts, run, compress=compress, concurrency=LENS_CONCURRENCY))

    def _set_hooks(self, variant: Variant) -> None:
        sites = tuple(variant.sites) if variant.kind == "lens" else ()
        if sites != self._hooks:
            assert self._lens is not None
            self._post(self._lens, "hooks", list(sites))
            self._hooks = sites

    def _post(self, server: Server, what: str, order: object) -> Any:
        answer = httpx2.post(f"{server.url}/bench/{what}", json=order, timeout=600, trust_env=False)
        return answer.raise_for_status().json()

    def _told(self, variant: Variant, told: Mapping[str, float]) -> Measurement:
        return Measurement(variant.name, told["tokens"], told["seconds"])

    def _next_texts(self) -> list[str]:
        self._n_runs += 1
        return self._shape.texts(self._n_runs)
