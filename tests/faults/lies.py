"""F2, F3, F6 and F13: answers that end early, whose footer lies, whose batches are out of order, with a bit flipped."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

import pyarrow as pa

from stratoscope.captures import to_json
from stratoscope.client import Client
from stratoscope.errors import AnswerError, APIError, CorruptAnswerError
from stratoscope_wire.checksum import batch_checksum, stream_checksum
from tests.faults.fault import Fault, World
from tests.faults.forging import Forged
from tests.faults.replay import exchange
from tests.faults.rewriter import Rewriter
from tests.faults.scene import Scene, agrees, few_tokens, patient_client, small_request, staged
from tests.faults.stream_reading import body_of
from tests.faults.tally import Tally

N_STIMULI: Final = 4

Lies = Callable[[Forged], Iterator[tuple[str, bytes]]]
"""Names and bodies of forged answers, given the true one."""


def end_without_a_footer(world: World) -> Tally:
    """Every part is good, HTTP ends properly, Arrow's end may be there: only the footer is missing."""
    tally = Tally()
    with forging(world) as (scene, rewriter, client):
        whole = _whole(scene)
        for n_batches in range(N_STIMULI + 1):
            for end in (True, False):
                rewriter.alter = _answering(whole.in_order(range(n_batches)).to_bytes(end=end))
                tally += scene.judge(client.try_fetch(scene.request), scene.ids[:n_batches])
    return tally


def lie_in_the_footer(world: World) -> Tally:
    return _refused(world, _footer_lies)


def disorder_the_batches(world: World) -> Tally:
    return _refused(world, _disorders)


def flip_bits(world: World) -> Tally:
    """One random bit: found, or without any effect, as in the padding between Arrow's buffers."""
    tally, n_found = Tally(), 0
    with forging(world) as (scene, rewriter, client):
        body = _body(scene)
        for _ in range(world.pick(100, 1000)):
            bit = world.random.randrange(8 * len(body))
            rewriter.alter = _answering(_flipped(body, bit))
            found, outcome = _flip(scene, client, bit)
            tally, n_found = tally + outcome, n_found + found
    print(f"{n_found} found, {tally.injected - n_found} without effect")
    return tally


def flip_bits_of_requests(world: World) -> Tally:
    """One random bit on the way to the server: another text must not be answered as if it were the one asked about."""
    tally, n_found = Tally(), 0
    with forging(world) as (scene, rewriter, client):
        n_bits = 8 * len(to_json(scene.request))
        for _ in range(world.pick(100, 1000)):
            bit = world.random.randrange(n_bits)
            rewriter.alter_request = partial(_flipped, bit=bit)
            found, outcome = _flip(scene, client, bit)
            tally, n_found = tally + outcome, n_found + found
    print(f"{n_found} found, {tally.injected - n_found} without effect")
    return tally


def _flipped(body: bytes, bit: int) -> bytes:
    flipped = bytearray(body)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def _flip(scene: Scene, client: Client, bit: int) -> tuple[bool, Tally]:
    fetched = client.try_fetch(scene.request)
    found = isinstance(fetched.error, AnswerError | APIError)
    came = pa.Table.from_batches(fetched.batches, scene.table.schema)
    whole = {name for batch in fetched.batches for name in batch.column(0).to_pylist()} == set(scene.ids)
    wrong = not agrees(came, scene.table)
    good = not wrong and (found or whole)
    if not good:
        print(f"bit {bit}: error {fetched.error!r}, wrong {wrong}", flush=True)
    return found, Tally(1, int(good), wrong=int(wrong))


def _refused(world: World, lies: Lies) -> Tally:
    """Every lie must be called corrupt, and nothing of the answer kept."""
    tally = Tally()
    with forging(world) as (scene, rewriter, client):
        whole = _whole(scene)
        rewriter.alter = _answering(whole.to_bytes())
        assert client.try_fetch(scene.request).error is None, "what is put together truthfully must be accepted"
        for name, body in lies(whole):
            rewriter.alter = _answering(body)
            fetched = client.try_fetch(scene.request)
            good = isinstance(fetched.error, CorruptAnswerError) and not fetched.batches
            if not good:
                print(f"{name}: error {fetched.error!r}, {len(fetched.batches)} batches kept", flush=True)
            tally += Tally(1, int(good), wrong=int(fetched.error is None))
    return tally


@contextmanager
def forging(world: World) -> Iterator[tuple[Scene, Rewriter, Client]]:
    """A scene, a proxy that forges answers, and a client behind it."""
    with (
        staged(world, small_request(N_STIMULI), *few_tokens(world)) as scene,
        Rewriter(scene.server.port) as rewriter,
        patient_client(rewriter.url) as client,
    ):
        yield scene, rewriter, client


def _footer_lies(whole: Forged) -> Iterator[tuple[str, bytes]]:
    last = len(whole.parts) - 1
    footer = whole.parts[last][1]
    for field in ("stimuli", "rows", "batches", "bytes"):
        for change in (-1, 1):
            yield (
                f"{field} {change:+}",
                whole.with_mark(last, **{field: str(int(footer[field.encode()]) + change)}).to_bytes(),
            )
        yield f"{field} is no number", whole.with_mark(last, **{field: "many"}).to_bytes()
    yield "a negative number of rows", whole.with_mark(last, rows="-1").to_bytes()
    for name in footer:
        yield f"no {name.decode()}", whole.with_mark(last, **{name.decode(): None}).to_bytes()
    for status in ("OK", "ok ", "done", "", "true"):
        yield f"status {status!r}", whole.with_mark(last, status=status).to_bytes()
    yield "another checksum", whole.with_mark(last, checksum="xxh3:0123456789abcdef").to_bytes()
    yield "a checksum without its prefix", whole.with_mark(last, checksum=footer[b"checksum"].decode()[5:]).to_bytes()
    yield "the checksum of no batches", whole.with_mark(last, checksum=stream_checksum([])).to_bytes()
    for field in ("stimuli", "rows", "bytes"):
        changed = str(int(whole.schema.metadata[field.encode()]) + 1)
        yield f"header: {field}", whole.with_header(**{field: changed}).to_bytes()
        yield (
            f"header and footer: {field}",
            whole.with_header(**{field: changed}).with_mark(last, **{field: changed}).to_bytes(),
        )
    for field, value in (("dtype", "float16"), ("protocol", "9"), ("fingerprint", "0" * 64)):
        yield f"header: {field}", whole.with_header(**{field: value}).to_bytes()
        yield f"header: no {field}", whole.with_header(**{field: None}).to_bytes()
    yield "a footer in the middle", whole.in_order([0, last, *range(1, last + 1)]).to_bytes()
    yield "a footer twice", whole.in_order([*range(last + 1), last]).to_bytes()
    yield "a batch after the footer", whole.in_order([*range(last + 1), 0]).to_bytes()
    yield "bytes after the end", whole.to_bytes() + b"\0"
    yield "another stream after the end", whole.to_bytes() * 2


def _disorders(whole: Forged) -> Iterator[tuple[str, bytes]]:
    last = len(whole.parts) - 1
    yield "two batches swapped", whole.in_order([1, 0, *range(2, last + 1)]).to_bytes()
    yield "the first batch missing", whole.in_order(range(1, last + 1)).to_bytes()
    for number in range(last):
        others = [index for index in range(last + 1) if index != number]
        yield f"batch {number} missing", whole.in_order(others).to_bytes()
        yield f"batch {number} twice", whole.in_order([*range(number + 1), *range(number, last + 1)]).to_bytes()
        for seq in (number + 1, number - 1, 99):
            yield f"batch {number} says it is {seq}", whole.with_mark(number, seq=str(seq)).to_bytes()
        for name in ("seq", "open", "checksum"):
            yield f"batch {number} without {name}", whole.with_mark(number, **{name: None}).to_bytes()
        yield f"batch {number} goes on", whole.with_mark(number, open="true").to_bytes()
        yield (
            f"batch {number} again, renumbered",
            _renumbered(whole, [*range(number + 1), *range(number, last)]).to_bytes(),
        )
        yield (
            f"batch {number} left out, renumbered",
            _renumbered(whole, [k for k in range(last) if k != number]).to_bytes(),
        )


def _renumbered(whole: Forged, numbers: Sequence[int]) -> Forged:
    """Take these batches with sequence, checksums and footer made to fit: only the stimuli betray it."""
    forged = whole.in_order([*numbers, len(whole.parts) - 1])
    checksums = []
    for seq in range(len(numbers)):
        checksums.append(batch_checksum(forged.parts[seq][0], seq))
        forged = forged.with_mark(seq, seq=str(seq), checksum=checksums[-1])
    n_rows = sum(batch.num_rows for batch, _ in forged.parts)
    n_bytes = n_rows * int(whole.schema.metadata[b"bytes"]) // int(whole.schema.metadata[b"rows"])
    counts = {"rows": str(n_rows), "bytes": str(n_bytes)}
    facts = {"batches": str(len(numbers)), "checksum": stream_checksum(checksums), "stimuli": str(len(set(numbers)))}
    return forged.with_header(**counts).with_mark(len(numbers), **counts, **facts)


def _body(scene: Scene) -> bytes:
    request = scene.request.model_dump_json(exclude_none=True).encode()
    return body_of(exchange(scene.server.url, "POST", "/v1/activations", request))


def _whole(scene: Scene) -> Forged:
    whole = Forged.of(_body(scene))
    assert len(whole.parts) == N_STIMULI + 1, "a batch per stimulus and the footer were to come"
    return whole


def _answering(body: bytes) -> Callable[[bytes], bytes]:
    return lambda _: body


FAULTS: Final = (
    Fault("F2", "the answer ends early, properly, without a footer", end_without_a_footer),
    Fault("F3", "every lie in footer and header", lie_in_the_footer),
    Fault("F6", "batches doubled, missing, swapped, renumbered", disorder_the_batches),
    Fault("F13", "a random bit flipped in an answer", flip_bits, full_s=600),
    Fault("F13R", "a random bit flipped in a request", flip_bits_of_requests, full_s=600),
)
