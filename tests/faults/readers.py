"""F5 and F12: readers that know nothing of us, on a good answer, and over HTTP/1.0."""

import json
from typing import Final

import polars as pl
import pyarrow as pa

from tests.faults.fault import Fault, World
from tests.faults.replay import exchange
from tests.faults.rewriter import Rewriter
from tests.faults.scene import few_tokens, small_request, sorted_table, staged
from tests.faults.stream_reading import HEAD_END, body_of
from tests.faults.tally import Tally, one


def read_a_good_answer_plainly(world: World) -> Tally:
    """The footer must not be in the way: the same table, no row more."""
    tally = Tally()
    with staged(world, small_request(), *few_tokens(world)) as scene, Rewriter(scene.server.port) as rewriter:
        request = scene.request.model_dump_json(exclude_none=True).encode()
        for url in (scene.server.url, rewriter.url):
            body = body_of(exchange(url, "POST", "/v1/activations", request))
            with_arrow = sorted_table(pa.ipc.open_stream(body).read_all().replace_schema_metadata(None))
            tally += one(with_arrow.equals(scene.table))
            with_polars = pl.read_ipc_stream(body)
            whole = pl.DataFrame(scene.table)
            tally += one(with_polars.sort(with_polars.columns[:3]).equals(whole.sort(whole.columns[:3])))
    return tally


def ask_over_http_1_0(world: World) -> Tally:
    """There a cut answer would end like a whole one."""
    with staged(world, small_request(), *few_tokens(world)) as scene:
        request = scene.request.model_dump_json(exclude_none=True).encode()
        raw = exchange(scene.server.url, "POST", "/v1/activations", request, version="1.0")
        head, _, body = raw.partition(HEAD_END)
        refused = head.split(b" ", 2)[1] == b"505" and json.loads(body)["error"]["code"] == "http_version"
        return one(refused)


FAULTS: Final = (
    Fault("F5", "plain pyarrow and polars read a good answer", read_a_good_answer_plainly),
    Fault("F12", "an HTTP/1.0 request", ask_over_http_1_0),
)
