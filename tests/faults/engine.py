"""F1 and F4: the engine fails at every block, in every way, and whoever reads the answer is told."""

from collections.abc import Callable
from typing import Any, Final

import polars as pl
import pyarrow as pa

from stratoscope.errors import IncompleteAnswerError, ServerError
from stratoscope_wire import ActivationsRequest, Capture
from tests.faults.fault import Fault, World
from tests.faults.replay import exchange
from tests.faults.rewriter import Rewriter
from tests.faults.scene import Scene, few_tokens, patient_client, small_request, staged
from tests.faults.steered_server import MARKS
from tests.faults.stream_reading import body_of, complete_stimuli
from tests.faults.tally import Tally, one

STEERED: Final = "tests.faults.steered_server"
N_STIMULI: Final = 5
MOST_BLOCKS: Final = 40


def fail_at_every_block(world: World) -> Tally:
    wanted = request(world)
    with staged(world, wanted, *few_tokens(world), program=STEERED) as scene:
        return sum((_fail(world, scene, kind) for kind in MARKS), Tally())


def read_failed_answers_plainly(world: World) -> Tally:
    """No reader of Arrow streams may take a failed answer for a whole one, even if a proxy ends its body properly."""
    tally = Tally()
    with (
        staged(world, small_request(N_STIMULI), *few_tokens(world), program=STEERED) as scene,
        Rewriter(scene.server.port) as rewriter,
    ):
        for block in range(1, N_STIMULI):
            body = small_request(N_STIMULI, mark=f"~raise@{block}").model_dump_json(exclude_none=True).encode()
            for url in (scene.server.url, rewriter.url):
                raw = exchange(url, "POST", "/v1/activations", body)
                assert raw.startswith(b"HTTP/1.1 200 "), "it must fail after its first byte"
                assert (raw.endswith(b"0\r\n\r\n")) == (url == rewriter.url), "only the proxy ends it properly"
                tally += sum((one(_raises(read, body_of(raw))) for read in READERS), Tally())
    return tally


def _fail(world: World, scene: Scene, kind: str) -> Tally:
    """Fail at block 0, 1, 2 ... until everything comes before the engine fails."""
    tally, before, place = Tally(), -1, 0
    while before < N_STIMULI and place < MOST_BLOCKS:
        outcome, kept = _fail_at(scene, kind, place, request(world, f"~{kind}@{place}"))
        tally += outcome
        assert kept >= before or not outcome.is_clean, "a later failure must not let less through"
        before, place = kept, place + 1
    assert 3 < place < MOST_BLOCKS, "the answer was to come in several blocks"
    return tally


def _fail_at(scene: Scene, kind: str, place: int, wanted: ActivationsRequest) -> tuple[Tally, int]:
    raw = _ask(scene, wanted)
    status = int(raw.split(b" ", 2)[1])
    with patient_client(scene.server.url) as client:
        fetched = client.try_fetch(wanted)
    kept = {name for batch in fetched.batches for name in batch.column(0).unique().to_pylist()}
    sent = set(complete_stimuli(raw))
    typed = isinstance(fetched.error, ServerError if status >= 500 else IncompleteAnswerError)
    if len(kept) == N_STIMULI and not typed:
        # Everything had come when it failed: nothing is missing, so nothing is to be told.
        typed = fetched.error is None
    truthful = (status >= 500) == (place == 0) or kind in ("nan", "shape", "early")
    good = kept == sent and typed and truthful and (place > 0 or not kept)
    if not good:
        print(f"{kind}@{place}: status {status}, kept {kept}, sent {sent}, error {fetched.error!r}", flush=True)
    return Tally(1, int(good), lost=len(sent - kept), wrong=len(kept - sent)), len(kept)


def request(world: World, mark: str = "") -> ActivationsRequest:
    """Stimuli that are not delivered together: too long for a batch, or, for vLLM, with rows of 4 MiB and more."""
    wanted = small_request(N_STIMULI, mark=mark, repeat=6)
    if world.engine != "vllm":
        return wanted
    capture = Capture(sites=["resid_post", "attn_out", "mlp_out"], layers="all", select=["all"])
    return wanted.model_copy(update={"capture": capture})


def _ask(scene: Scene, wanted: ActivationsRequest) -> bytes:
    return exchange(scene.server.url, "POST", "/v1/activations", wanted.model_dump_json(exclude_none=True).encode())


def _raises(read: Callable[[bytes], Any], body: bytes) -> bool:
    try:
        table = read(body)
    except (pa.ArrowException, OSError, pl.exceptions.PolarsError):
        return True
    print(f"a failed answer was read as {table.shape}", flush=True)
    return False


READERS: Final[tuple[Callable[[bytes], Any], ...]] = (
    lambda body: pa.ipc.open_stream(body).read_all(),
    pl.read_ipc_stream,
)

FAULTS: Final = (
    Fault(
        "F1",
        "the engine fails at every block in five ways",
        fail_at_every_block,
        engines=("synthetic", "torch", "vllm"),
    ),
    Fault("F4", "plain pyarrow and polars read failed answers", read_failed_answers_plainly),
)
