"""Memory of other requests: canaries in everything that is reused, and none in anything that is sent."""

import json
from typing import Any, Final

from tests.faults import raw
from tests.faults.answers import request_of
from tests.faults.canaried import CANARY
from tests.faults.fault import Fault, World
from tests.faults.processes import ServerProcess
from tests.faults.tally import Tally
from tests.faults.verdicts import Verdicts

SONG: Final = bytes([CANARY]) * 8
"""In float32 and in bfloat16 numbers of 3e38, which no states are; long enough not to come about by chance."""

SITES: Final = ["embed", "resid_mid", "resid_post", "attn_out", "mlp_out", "heads", "final_norm"]
SELECT: Final[list[Any]] = ["last", "all", "mean", 0, {"span": "a", "take": "mean"}, {"span": "a", "take": "all"}]


def canaries_in_reused_memory(world: World) -> Tally:
    verdicts = Verdicts()
    if world.engine != "vllm":
        with ServerProcess(world, "--leak", program="tests.faults.canaried") as leaking:
            assert SONG in _sent(leaking.url, _request(world)), "a leak is not found out"
    ring = ("--ring-bytes", str(64 << 20)) if world.engine == "vllm" else ()
    with ServerProcess(world, "--max-batch-tokens", "64", *ring, program="tests.faults.canaried") as server:
        for number in range(world.pick(30, 300)):
            request = _request(world)
            sent = _sent(server.url, request)
            assert len(sent) > 1000, sent
            verdicts.judge(SONG not in sent, f"a canary at byte {sent.find(SONG)} of the answer to request {number}")
            # An answer that is left in the middle leaves its memory behind in whatever state it is.
            if number % 3 == 0:
                _leave(server.url, _request(world))
        for data in (raw.request("GET", "/v1/none"), raw.request("POST", "/v1/plan", body=b"{}")):
            verdicts.judge(SONG not in raw.send(server.url, data).body, "a canary in an error")
    return verdicts.tally


def _request(world: World) -> dict[str, Any]:
    chance = world.random
    request = request_of(chance.randrange(1, 12), words=chance.randrange(1, 12))
    for stimulus in request["stimuli"]:
        stimulus["spans"] = {"a": [0, 6]}
    n_layers = 12 if world.engine == "synthetic" else 30
    sites = chance.sample(SITES, chance.randrange(1, 4))
    layers = sorted(chance.sample(range(n_layers), chance.randrange(1, 6)))
    select = chance.sample(SELECT, chance.randrange(1, len(SELECT)))
    dtype = chance.choice(("float32", "bfloat16"))
    return request | {"capture": {"sites": sites, "layers": layers, "select": select}, "dtype": dtype}


def _post(request: dict[str, Any]) -> bytes:
    return raw.request("POST", "/v1/activations", body=json.dumps(request).encode())


def _sent(url: str, request: dict[str, Any]) -> bytes:
    """Everything that came, headers and framing of HTTP included."""
    with raw.connect(url, timeout_s=120) as connection:
        connection.sendall(_post(request))
        data = raw.receive(connection)
    assert data.startswith(b"HTTP/1.1 200"), data[:500]
    return data


def _leave(url: str, request: dict[str, Any]) -> None:
    with raw.connect(url, timeout_s=120) as connection:
        connection.sendall(_post(request))
        connection.recv(100)


FAULTS: Final = (
    Fault(
        "S6", "canaries in all memory that is reused", canaries_in_reused_memory,
        small_s=300, engines=("synthetic", "torch", "vllm"),
    ),
)  # fmt: skip
