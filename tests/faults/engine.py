"""F1 and F4: the engine fails at every block, in every way, and whoever reads the answer is told."""

from collections.abc import Callable
from typing import Any, Final

import polars as pl
import pyarrow as pa

from stratoscope.errors import IncompleteAnswerError, ServerError
from tests.faults.cuts import FEW_TOKENS
from tests.faults.fault import Fault, World
from tests.faults.replay import exchange
from tests.faults.rewriter import Rewriter
from tests.faults.scene import Scene, patient_client, small_request, staged
from tests.faults.steered_server import MARKS
from tests.faults.stream_reading import body_of, complete_stimuli
from tests.faults.tally import Tally, one

STEERED: Final = "tests.faults.steered_server"
N_STIMULI: Final = 5


def fail_at_every_block(world: World) -> Tally:
    with staged(world, small_request(N_STIMULI), *FEW_TOKENS, program=STEERED) as scene:
        return sum((_fail_at(scene, kind, block) for kind in MARKS for block in range(N_STIMULI + 1)), Tally())


def read_failed_answers_plainly(world: World) -> Tally:
    """No reader of Arrow streams may take a failed answer for a whole one, even if a proxy ends its body properly."""
    tally = Tally()
    with (
        staged(world, small_request(N_STIMULI), *FEW_TOKENS, program=STEERED) as scene,
        Rewriter(scene.server.port) as rewriter,
    ):
        for block in range(1, N_STIMULI):
            request = small_request(N_STIMULI, mark=f"~raise@{block}")
            body = request.model_dump_json(exclude_none=True).encode()
            for url in (scene.server.url, rewriter.url):
                raw = exchange(url, "POST", "/v1/activations", body)
                assert raw.startswith(b"HTTP/1.1 200 "), "it must fail after its first byte"
                assert (raw.endswith(b"0\r\n\r\n")) == (url == rewriter.url), "only the proxy ends it properly"
                tally += sum((one(_raises(read, body_of(raw))) for read in READERS), Tally())
    return tally


def _fail_at(scene: Scene, kind: str, block: int) -> Tally:
    # Block N_STIMULI is one that never comes: the engine fails after its last.
    request = small_request(N_STIMULI, mark=f"~{kind}@{block}")
    raw = exchange(scene.server.url, "POST", "/v1/activations", request.model_dump_json(exclude_none=True).encode())
    status = int(raw.split(b" ", 2)[1])
    with patient_client(scene.server.url) as client:
        fetched = client.try_fetch(request)
    kept = [name for batch in fetched.batches for name in batch.column(0).unique().to_pylist()]
    sent = complete_stimuli(raw)
    expected = [stimulus.id for stimulus in request.stimuli][: min(block, N_STIMULI)]
    complete_and_told = sorted(kept) == sorted(sent) == sorted(expected)
    typed = isinstance(fetched.error, ServerError if status >= 500 else IncompleteAnswerError)
    if block == N_STIMULI and not typed:
        # Everything had come when it failed: nothing is missing, so nothing is to be told.
        typed = fetched.error is None
    truthful = (status >= 500) == (block == 0) or kind in ("nan", "shape", "early")
    good = complete_and_told and typed and truthful
    if not good:
        print(f"{kind}@{block}: status {status}, kept {kept}, sent {sent}, error {fetched.error!r}", flush=True)
    return Tally(1, int(good), lost=len(set(expected) - set(kept)), wrong=len(set(kept) - set(expected)))


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
