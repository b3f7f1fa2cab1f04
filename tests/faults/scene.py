"""A real server, a proxy before it, a client that tries once, a request, and its undisturbed answer."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from stratoscope.client import Client
from stratoscope.fetching import Fetched
from stratoscope.retries import RetryPolicy
from stratoscope_wire import ActivationsRequest, Capture, Stimulus
from tests.faults.fault import World
from tests.faults.processes import ServerProcess
from tests.faults.proxy import Proxy
from tests.faults.stream_reading import complete_stimuli
from tests.faults.tally import Tally
from tests.faults.truth import SyntheticTruth, check_tables

PATIENCE_S: Final = 20.0
"""Longest that one attempt may take; its reads time out after a quarter of that."""

WORDS: Final = ("church", "organ", "lake", "Zürich", "river", "lasso", "stone", "bird", "冬", "tree")

MODEL_FLAGS: Final = {"synthetic": (), "torch": ("--dtype", "float32"), "vllm": ("--dtype", "float32")}


@dataclass(frozen=True, slots=True)
class Scene:
    """What a stream fault needs.

    Attributes
    ----------
    table
        The undisturbed answer; its values were held against the truth, where the truth is known.
    """

    server: ServerProcess
    client: Client
    request: ActivationsRequest
    table: pa.Table

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(stimulus.id for stimulus in self.request.stimuli)

    def judge(self, fetched: Fetched, sent: Sequence[str], seconds: float = 0.0, *, exactly: bool = True) -> Tally:
        """Hold what came of one attempt against the truth.

        Parameters
        ----------
        sent
            Stimuli that got through whole.
        exactly
            Whether all of them must have been kept; a reset may take away what was on its way.
        """
        came = pa.Table.from_batches(fetched.batches, self.table.schema)
        kept = set(came.column(0).to_pylist())
        keys = [*zip(*(came.column(index).to_pylist() for index in range(3)), strict=True)]
        doubled = len(keys) - len(set(keys))
        wrong = int(not agrees(came, self.table))
        lost = len(set(sent) - kept) if exactly else 0
        unproved = len(kept - set(sent))
        short = (fetched.error is None) != (kept == set(self.ids))
        hung = seconds > PATIENCE_S
        good = not (wrong or lost or unproved or doubled or short or hung)
        if not good:
            print(
                f"kept {sorted(kept)}, sent {sent}, error {fetched.error!r}, wrong {wrong}, {seconds:.1f} s", flush=True
            )
        return Tally(1, int(good), lost, doubled, wrong, int(hung))


@contextmanager
def staged(world: World, request: ActivationsRequest, *flags: str, program: str | None = None) -> Iterator[Scene]:
    """Start the server, and fetch once undisturbed."""
    with (
        ServerProcess(world, *flags, *MODEL_FLAGS[world.engine], **({"program": program} if program else {})) as server,
        patient_client(server.url) as client,
    ):
        fetched = client.try_fetch(request)
        assert fetched.error is None, f"the undisturbed answer must come: {fetched.error}"
        table = sorted_table(pa.Table.from_batches(fetched.batches).replace_schema_metadata(None))
        if world.engine == "synthetic":
            texts = {stimulus.id: stimulus.text or "" for stimulus in request.stimuli}
            census = check_tables([table], texts, request.capture.labels, SyntheticTruth())
            assert census.is_clean, census
            assert census.there == set(texts)
        yield Scene(server, client, request, table)


def patient_client(url: str) -> Client:
    """A client that tries once and waits a few seconds for a byte."""
    return Client(url, max_retries=RetryPolicy(0), timeout=PATIENCE_S / 4)


def try_through(scene: Scene, proxy: Proxy, client: Client, *, exactly: bool) -> Tally:
    """Fetch once through a proxy and hold what was kept against what the proxy let through."""
    began = time.monotonic()
    fetched = client.try_fetch(scene.request)
    seconds = time.monotonic() - began
    return scene.judge(fetched, complete_stimuli(bytes(proxy.links[-1].sent)), seconds, exactly=exactly)


def agrees(came: pa.Table, whole: pa.Table) -> bool:
    """Whether every row that came is one of the whole answer's, value for value."""
    came = sorted_table(came.replace_schema_metadata(None))
    names = set(came.column(0).to_pylist())
    mask = pa.array([name in names for name in whole.column(0).to_pylist()], pa.bool_())
    return bool(came.equals(whole.filter(mask)))


def sorted_table(table: pa.Table) -> pa.Table:
    return table.combine_chunks().sort_by([(name, "ascending") for name in ("stimulus_id", "selector", "position")])


def few_tokens(world: World) -> tuple[str, str]:
    """Flags that make a batch of every stimulus, or of as few as the engine can."""
    return "--max-batch-tokens", "64" if world.engine == "vllm" else "4"


def small_request(n_stimuli: int = 4, *, mark: str = "", repeat: int = 1) -> ActivationsRequest:
    """Stimuli of different lengths, one layer, a row each."""
    texts = [" ".join(WORDS[: 2 + 2 * k] * repeat) for k in range(n_stimuli)]
    return ActivationsRequest(
        stimuli=[Stimulus(id=f"s{k}{mark}", text=text) for k, text in enumerate(texts)],
        capture=Capture(sites=["resid_post"], layers=[3], select=["last"]),
    )
