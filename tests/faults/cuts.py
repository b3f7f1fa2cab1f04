"""F7 and F8: an answer that is cut, at every byte and exactly between two messages."""

import operator
from typing import Final

from stratoscope_wire import ActivationsRequest, Capture, Stimulus
from tests.faults.fault import Fault, World
from tests.faults.proxy import Conduct, End, Proxy
from tests.faults.replay import Replay, record
from tests.faults.rewriter import Rewriter
from tests.faults.scene import Scene, few_tokens, patient_client, small_request, staged, try_through
from tests.faults.stream_reading import body_of, message_ends, raw_offset
from tests.faults.tally import Tally

LARGE_ROWS: Final = 4224
"""Rows of 62 columns of 64 values that make 64 MiB."""


def cut_at_every_byte(world: World) -> Tally:
    with staged(world, small_request(), *few_tokens(world)) as scene, Proxy(scene.server.port) as proxy:
        raw = _recorded(scene, proxy)
        step = world.pick(9, 1) if world.engine == "synthetic" else 25
        return _cut(scene, proxy, [(offset, "fin") for offset in range(1, len(raw), step)])


def cut_a_large_answer(world: World) -> Tally:
    with staged(world, large_request(world.pick(LARGE_ROWS // 16, LARGE_ROWS))) as scene:
        recorded = record(scene.server.url, scene.request)
        with Replay(recorded) as replay, Proxy(replay.port) as proxy:
            raw = _recorded(scene, proxy)
            offsets = [world.random.randrange(1, len(raw)) for _ in range(world.pick(20, 500))]
            return _cut(scene, proxy, [(offset, world.random.choice(("fin", "rst"))) for offset in offsets])


def cut_between_messages(world: World) -> Tally:
    with staged(world, small_request(), *few_tokens(world)) as scene:
        with Proxy(scene.server.port) as proxy:
            raw = _recorded(scene, proxy)
            ends = message_ends(body_of(raw))
            assert len(ends) == 1 + len(scene.ids) + 1, "the schema, a batch per stimulus, and the footer were to come"
            places = [raw_offset(raw, end) for end in ends]
            tally = _cut(scene, proxy, [(place, by) for place in places for by in ("fin", "rst")])
        return tally + _cut_and_completed(scene, ends)


def _cut(scene: Scene, proxy: Proxy, cuts: list[tuple[int, End]]) -> Tally:
    tally = Tally()
    with patient_client(proxy.url) as client:
        client.model()
        for offset, by in cuts:
            proxy.treat(Conduct(cut_after=offset, by=by))
            tally += try_through(scene, proxy, client, exactly=by == "fin")
            assert len(proxy.links[-1].sent) == offset, "the cut must be where it was to be"
    return tally


def _cut_and_completed(scene: Scene, ends: list[int]) -> Tally:
    """Let a proxy end the body of a cut answer properly: nothing but the footer can then tell."""
    tally = Tally()
    with Rewriter(scene.server.port) as rewriter, patient_client(rewriter.url) as client:
        for number, end in enumerate(ends):
            rewriter.alter = operator.itemgetter(slice(end))
            fetched = client.try_fetch(scene.request)
            came = list(scene.ids[: min(number, len(scene.ids))])
            tally += scene.judge(fetched, came)
    return tally


def _recorded(scene: Scene, proxy: Proxy) -> bytes:
    with patient_client(proxy.url) as client:
        client.model()
        proxy.treat(Conduct())
        assert client.try_fetch(scene.request).error is None
        return bytes(proxy.links[-1].sent)


def large_request(n_rows: int) -> ActivationsRequest:
    """Every site and layer of the synthetic model; a stimulus has up to 24 rows."""
    stimuli: list[Stimulus] = []
    while n_rows:
        n_tokens = min(n_rows, 24)
        words = [f"word{len(stimuli)}", *(f"of{k}" for k in range(n_tokens - 2))][: n_tokens - 1]
        stimuli.append(Stimulus(id=f"s{len(stimuli)}", text=" ".join(words) or "."))
        n_rows -= n_tokens
    sites = ["embed", "resid_mid", "resid_post", "attn_out", "mlp_out", "heads", "final_norm"]
    return ActivationsRequest(stimuli=stimuli, capture=Capture(sites=sites, layers="all", select=["all"]))


FAULTS: Final = (
    Fault("F7", "a small answer cut at every byte", cut_at_every_byte, 90, 1200, ("synthetic", "torch", "vllm")),
    Fault("F7L", "a 64 MiB answer cut at random bytes", cut_a_large_answer, 90, 1800),
    Fault("F8", "cut between messages: FIN, RST, a proxy that ends the body", cut_between_messages),
)
