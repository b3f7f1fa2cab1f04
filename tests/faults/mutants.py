"""Damaged streams without end, each held to three rules: only an error of the wire, no other values, bounded memory.

`python -m tests.faults.mutants SEED N` runs in a process of its own with a limit on its memory, and prints its counts.
"""

import json
import random
import resource
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Final

import pyarrow as pa

from stratoscope_server.admission import admit
from stratoscope_server.engines.synthetic import SyntheticRunner, load_engine
from stratoscope_server.settings import Settings
from stratoscope_wire import ActivationsRequest, Expected, StreamDecoder, StreamEncoder
from stratoscope_wire.errors import WireError
from stratoscope_wire.schema import StreamHeader
from stratoscope_wire.version import PROTOCOL_VERSION

SPARE_BYTES: Final = 512 << 20
MAX_GROWTH: Final = 128 << 20
EXTREMES: Final = (0, 1, -1, 2**31 - 1, -(2**31), 2**15, 2**20, 2**28, 8, 64)
"""What lengths, offsets and counts are set to."""


def mutate(good: bytes, chance: random.Random) -> bytes:
    """Damage a stream in one to three places."""
    data = bytearray(good)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        chance.choice(MUTATIONS)(data, chance)
    return bytes(data)


def _flip(data: bytearray, chance: random.Random) -> None:
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _set_byte(data: bytearray, chance: random.Random) -> None:
    if data:
        data[chance.randrange(len(data))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))


def _set_word(data: bytearray, chance: random.Random) -> None:
    if len(data) > 8:
        start = chance.randrange(len(data) // 4 - 1) * 4
        data[start : start + 4] = struct.pack("<i", chance.choice(EXTREMES))


def _set_long(data: bytearray, chance: random.Random) -> None:
    if len(data) > 16:
        start = chance.randrange(len(data) // 8 - 1) * 8
        data[start : start + 8] = struct.pack("<q", chance.choice((*EXTREMES, 2**40, 2**62, -(2**63), 2**63 - 1)))


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data) + 1) :]


def _leave_out(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data) + 1)
    del data[start : start + chance.choice((1, 4, 8, 64, 1000))]


def _repeat(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data) + 1)
    data[start:start] = data[start : start + chance.choice((1, 4, 8, 64, 1000, len(data)))]


def _insert(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data) + 1)
    data[start:start] = chance.randbytes(chance.choice((1, 4, 8, 64)))


def _swap(data: bytearray, chance: random.Random) -> None:
    n = chance.choice((4, 8, 64, 512))
    if len(data) > 2 * n:
        first, second = (chance.randrange(len(data) - n) for _ in range(2))
        piece = data[first : first + n]
        data[first : first + n] = data[second : second + n]
        data[second : second + n] = piece


MUTATIONS: Final = (
    _flip,
    _set_byte,
    _set_word,
    _set_word,
    _set_long,
    _set_long,
    _cut,
    _leave_out,
    _repeat,
    _insert,
    _swap,
)


def good_streams() -> list[tuple[bytes, Expected]]:
    """Streams of several shapes, as the server encodes them."""
    return [_stream(layers, select, dtype) for layers, select, dtype in SHAPES]


SHAPES: Final[tuple[tuple[list[int], list[str | int], str], ...]] = (
    ([3], ["last"], "float32"),
    ([0, 11], ["all", "mean"], "bfloat16"),
    ([5], ["all"], "float16"),
    ([3, 4, 5], ["last", 0], "float32"),
)


def _stream(layers: list[int], select: list[str | int], dtype: str) -> tuple[bytes, Expected]:
    stimuli = [{"id": f"s{index}", "text": f"A church and {'organ ' * index}"} for index in range(4)]
    capture = {"layers": layers, "select": select}
    request = ActivationsRequest.model_validate({"stimuli": stimuli, "capture": capture, "dtype": dtype})
    engine, runner = load_engine(), SyntheticRunner()
    limits = Settings(engine="synthetic").limits(runner.card, 1, None)
    admitted = admit(request, "fuzz", engine, limits)
    plan, job = admitted.plan, admitted.job
    header = StreamHeader(
        protocol=PROTOCOL_VERSION, fingerprint=plan.fingerprint, request_id="fuzz", dtype=job.dtype,
        stimuli=len(plan.stimuli), rows=plan.n_rows, bytes=plan.bytes,
    )  # fmt: skip
    encoder = StreamEncoder(job.columns, header)
    pieces = encoder.start()
    for prompt in job.prompts:
        for message in encoder.encode(runner.run([prompt], job.columns, job.dtype)):
            pieces += message
    return b"".join([*pieces, *encoder.finish()]), Expected.of(request, job.columns, plan.fingerprint)


def read(data: bytes, expected: Expected) -> tuple[str, pa.Table | None]:
    """Read a stream; return the name of the error that it ended in, or what it held if it was accepted."""
    try:
        return "", pa.Table.from_batches(list(StreamDecoder(data, expected)))
    except WireError as error:
        return type(error).__name__, None


def main(seed: str, n: str) -> None:
    chance = random.Random(seed)
    streams = [(data, expected, read(data, expected)[1]) for data, expected in good_streams()]
    assert all(table is not None for _, _, table in streams), "a good stream is refused"
    _limit_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    endings: Counter[str] = Counter()
    n_wrong = 0
    for _ in range(int(n)):
        good, expected, held = chance.choice(streams)
        ending, found = read(mutate(good, chance), expected)
        endings[ending or "accepted"] += 1
        # Padding, and what is told beside the data, may be damaged without any harm.
        n_wrong += found is not None and not _same(found, held)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
    print(json.dumps({"read": sum(endings.values()), "wrong": n_wrong, "grown": grown, "endings": dict(endings)}))


def _same(found: pa.Table, held: pa.Table | None) -> bool:
    """Whether two tables hold the same, bit for bit."""
    return held is not None and [_bits(found, name) for name in held.column_names] == [
        _bits(held, name) for name in held.column_names
    ]


def _bits(table: pa.Table, name: str) -> list[object]:
    column = table.column(name)
    if pa.types.is_fixed_size_list(column.type):
        return [b"".join(chunk.flatten().to_numpy(zero_copy_only=False).tobytes() for chunk in column.chunks)]
    values: list[object] = column.to_pylist()
    return values


def _limit_memory() -> None:
    """Let no more be allocated than a little beyond what is mapped now."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + SPARE_BYTES, mapped + SPARE_BYTES))


if __name__ == "__main__":
    main(*sys.argv[1:])
