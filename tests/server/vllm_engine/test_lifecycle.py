"""A real server process over vLLM: what it delivers, and what is left when one of its processes dies or hangs."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest

from stratoscope_wire import ActivationsRequest, Expected, ModelCard, RemoteStreamError, StreamDecoder

ADDRESS = re.compile(r"running on (http://\S+)")
SITES = ["resid_post", "attn_out", "mlp_out", "heads"]


@dataclass
class Served:
    """A running server process."""

    process: subprocess.Popen[str]
    url: str
    log: list[str]
    named: set[Path] = field(default_factory=set)
    """Shared memory with a name in a file system, of any of its processes."""

    def everyone(self) -> list[psutil.Process]:
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]

    def find(self, kind: str) -> psutil.Process:
        """Return the process of a kind: server, core, worker or tracker."""
        if kind == "server":
            return psutil.Process(self.process.pid)
        marks = {"core": "EngineCore", "worker": "Worker", "tracker": "resource_tracker"}
        found = [p for p in self.everyone()[1:] if marks[kind] in " ".join(p.cmdline())]
        assert found, [" ".join(p.cmdline()) for p in self.everyone()]
        return found[-1]

    def find_shared_memory(self) -> None:
        """Note what shared memory the processes have mapped; the ring must be among it."""
        mapped = {line.split(maxsplit=5)[-1] for p in self.everyone() for line in maps(p.pid)}
        assert any("memfd:stratoscope" in name for name in mapped)
        self.named = {Path(name) for name in mapped if name.startswith("/dev/shm/") and "(deleted)" not in name}

    def ready(self) -> int:
        return httpx2.get(f"{self.url}/readyz", timeout=10).status_code


def maps(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()


@contextmanager
def serve(folder: Path, *flags: str, wait: bool = True) -> Iterator[Served]:
    command = [sys.executable, "-m", "stratoscope_server", "--engine", "vllm", "--model", str(folder)]
    command += ["--dtype", "float32", "--port", "0", "--max-batch-tokens", "256", *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    log: list[str] = []
    pump = threading.Thread(target=log.extend, args=(iter(process.stderr.readline, ""),), daemon=True)
    pump.start()
    everyone: list[psutil.Process] = []
    served: Served | None = None
    try:
        deadline = time.monotonic() + 400
        while not (found := ADDRESS.search("".join(log))):
            assert process.poll() is None, "".join(log)
            assert time.monotonic() < deadline
            time.sleep(0.1)
        served = Served(process, found.group(1), log)
        while wait and served.ready() != 200:
            assert process.poll() is None, "".join(log)
            assert time.monotonic() < deadline, "".join(log)
            time.sleep(0.2)
        everyone = served.everyone()
        served.find_shared_memory()
        yield served
    finally:
        everyone += served.everyone() if process.poll() is None and served is not None else []
        for other in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                other.kill()
        process.kill()
        process.wait(timeout=30)
        # They held the other end of the pipe.
        pump.join(timeout=30)
        process.stderr.close()


@pytest.fixture(scope="module")
def folder(vllm_folder: Callable[[str], Path]) -> Path:
    return vllm_folder("llama")


def body(n_texts: int = 3, words: int = 20, **capture: Any) -> dict[str, Any]:
    random = np.random.default_rng(5)
    texts = [" ".join(random.choice(["church", "organ", "town", "day"], words)) for _ in range(n_texts)]
    return {"stimuli": [{"id": f"s{i}", "text": text} for i, text in enumerate(texts)], "capture": capture}


def big() -> dict[str, Any]:
    """A request whose answer no socket buffer holds: 200 texts of some 60 tokens, 30 KiB of rows a token."""
    return body(200, 40, sites=[*SITES, "resid_mid"], select=["all"])


def expected(url: str, request: dict[str, Any]) -> Expected:
    card = ModelCard.model_validate(httpx2.get(f"{url}/v1/model").json())
    parsed = ActivationsRequest.model_validate(request)
    return Expected.of(parsed, card.columns(parsed.capture.sites, parsed.capture.layers), card.fingerprint)


def fetch(url: str, request: dict[str, Any]) -> list[Any]:
    answer = httpx2.post(f"{url}/v1/activations", json=request, timeout=120)
    assert answer.status_code == 200, answer.text
    return list(StreamDecoder(answer.content, expected(url, request)))


def assert_nothing_is_left(everyone: list[psutil.Process], served: Served, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        alive = [p for p in everyone if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not alive and not any(path.exists() for path in served.named):
            return
        time.sleep(0.2)
    left = [p.cmdline() for p in everyone if p.is_running()]
    raise AssertionError(f"left behind: {left} {[path for path in served.named if path.exists()]}")


def test_an_answer_over_http_is_verified_and_right_and_a_signal_drains_what_is_open(
    folder: Path, reference: Callable[..., Any], distance: Callable[..., float]
) -> None:
    with serve(folder, "--ring-bytes", str(32 << 20)) as served:
        request = body(12, sites=SITES, select=["last", "all", "mean"])
        before = {name: gauge(served, f"stratoscope_pass_{name}_sum") for name in ("prompts", "tokens")}
        batches = fetch(served.url, request)
        # A prompt may be spread over several steps, and each rank tells of every step: its tokens are counted once.
        n_tokens = httpx2.post(f"{served.url}/v1/plan", json=request).json()["n_tokens"]
        assert gauge(served, "stratoscope_pass_tokens_sum") - before["tokens"] == n_tokens
        assert gauge(served, "stratoscope_pass_prompts_sum") - before["prompts"] >= 12
        ids = [row for batch in batches for row in batch.column("stimulus_id").to_pylist()]
        assert set(ids) == {f"s{i}" for i in range(12)}
        check_rows(folder, request, batches, reference, distance)
        assert gauge(served, "stratoscope_engine_up") == 1
        assert gauge(served, "stratoscope_ring_bytes") == 32 << 20
        everyone = served.everyone()
        wanted = expected(served.url, big())
        with httpx2.stream("POST", f"{served.url}/v1/activations", json=big(), timeout=120) as answer:
            chunks = answer.iter_raw()
            data = next(chunks)
            served.process.send_signal(signal.SIGTERM)
            data += b"".join(chunks)
        assert sum(batch.num_rows for batch in StreamDecoder(data, wanted)) > 5000
        assert served.process.wait(timeout=60) in (0, -signal.SIGTERM)
        assert_nothing_is_left(everyone, served)
        assert not [line for line in served.log if "dead" in line.lower() or "Traceback" in line]


def check_rows(
    folder: Path,
    request: dict[str, Any],
    batches: list[Any],
    reference: Callable[..., Any],
    distance: Callable[..., float],
) -> None:
    """Hold rows that came over HTTP to Hugging Face, position by position."""
    from stratoscope_server.engines.pretrained.tokenizing import FastTokenizer
    from stratoscope_server.engines.protocol import Prompt

    tokenizer = FastTokenizer(folder)
    texts = {stimulus["id"]: stimulus["text"] for stimulus in request["stimuli"]}
    checked = 0
    for batch in batches:
        rows = batch.to_pylist()
        for row in rows[:: max(1, len(rows) // 50)]:
            token_ids = tokenizer.encode(texts[row["stimulus_id"]], add_special_tokens=True).token_ids
            states = reference(folder, Prompt("x", token_ids, ()))
            for column in batch.schema.names[4:]:
                truth = states[column].astype(np.float64)
                wanted = truth.mean(0) if row["selector"] == "mean" else truth[row["position"]]
                assert distance(np.array(row[column]), wanted) <= 1e-4, (column, row["position"])
                checked += 1
    assert checked > 100


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("victim", ["worker", "core", "server"])
def test_the_death_of_any_process_ends_streams_with_an_error_and_leaves_nothing(
    victim: str, ranks: int, folder: Path
) -> None:
    with serve(folder, "--ring-bytes", str(32 << 20), "--tensor-parallel-size", str(ranks)) as served:
        everyone, wanted = served.everyone(), expected(served.url, big())
        target = served.find(victim)
        data, whole = b"", True
        with httpx2.stream("POST", f"{served.url}/v1/activations", json=big(), timeout=60) as answer:
            chunks = answer.iter_raw()
            data = next(chunks)
            target.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            try:
                for chunk in chunks:
                    data += chunk
            except httpx2.TransportError:
                whole = False
        assert not whole, "a stream that failed ended like a good one"
        if victim != "server":
            with pytest.raises(RemoteStreamError, match="the engine is dead"):
                list(StreamDecoder(data, wanted))
            assert served.ready() == 503
            assert time.monotonic() - killed < 10
            assert served.process.wait(timeout=60) == 1
        assert_nothing_is_left(everyone, served)


def test_the_death_of_the_process_that_cleans_up_after_the_others_leaves_nothing(folder: Path) -> None:
    with serve(folder) as served:
        everyone = served.everyone()
        served.find("tracker").kill()
        assert fetch(served.url, body())
        served.process.terminate()
        served.process.wait(timeout=60)
        assert_nothing_is_left(everyone, served)


@pytest.mark.parametrize("victim", ["worker", "core"])
def test_a_process_that_hangs_counts_as_dead(victim: str, folder: Path) -> None:
    with serve(folder, "--stall-seconds", "4") as served:
        everyone = served.everyone()
        served.find(victim).suspend()
        began = time.monotonic()
        answer = httpx2.post(f"{served.url}/v1/activations", json=body(), timeout=60)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_dead"
        assert 3 < time.monotonic() - began < 12
        assert served.ready() == 503
        assert served.process.wait(timeout=100) == 1
        assert_nothing_is_left(everyone, served)


def test_a_hang_is_noticed_although_nobody_asks(folder: Path) -> None:
    with serve(folder, "--stall-seconds", "3") as served:
        served.find("worker").suspend()
        assert served.process.wait(timeout=100) == 1
        assert "did not answer a prompt of one token" in "".join(served.log)


def test_slow_readers_fill_the_ring_and_delay_only_requests_that_capture(folder: Path) -> None:
    with serve(folder, "--ring-bytes", str(8 << 20)) as served, httpx2.Client(timeout=60) as client:
        stalled = [client.stream("POST", f"{served.url}/v1/activations", json=big()) for _ in range(2)]
        answers = [stream.__enter__() for stream in stalled]
        try:
            readers = [answer.iter_raw() for answer in answers]
            for reader in readers:
                next(reader)
            time.sleep(3)
            rss = served.find("server").memory_info().rss
            # Plans and health are served; the ring is bounded; nothing grows while nobody reads.
            assert httpx2.post(f"{served.url}/v1/plan", json=body(), timeout=5).status_code == 200
            assert served.ready() == 200
            assert 0 < gauge(served, "stratoscope_ring_used_bytes") <= 8 << 20
            with pytest.raises(httpx2.ReadTimeout):
                httpx2.post(f"{served.url}/v1/activations", json=body(8, 40, select=["all"], sites=SITES), timeout=2)
            time.sleep(2)
            assert served.find("server").memory_info().rss - rss < 32 << 20
        finally:
            for stream in stalled:
                stream.__exit__(None, None, None)
        # The readers have left: their room is free at once, and who waited is served.
        began = time.monotonic()
        assert fetch(served.url, body())
        assert time.monotonic() - began < 10
        deadline = time.monotonic() + 10
        while gauge(served, "stratoscope_ring_used_bytes"):
            assert time.monotonic() < deadline, "a region was not given back"
            time.sleep(0.1)


def gauge(served: Served, name: str) -> float:
    (line,) = [x for x in httpx2.get(f"{served.url}/metrics").text.splitlines() if x.startswith(f"{name} ")]
    return float(line.split()[1])


def test_a_stimulus_larger_than_the_ring_is_refused_with_the_fix(folder: Path) -> None:
    with serve(folder, "--ring-bytes", str(1 << 16)) as served:
        request = body(1, 60, sites=SITES, select=["all"])
        answer = httpx2.post(f"{served.url}/v1/activations", json=request, timeout=60)
        assert answer.status_code == 413
        assert re.search(r"'s0' gives \d+ bytes of rows; at most 65536 fit the ring.*--ring-bytes", answer.text)


def test_an_interrupt_from_the_terminal_drains_too(folder: Path) -> None:
    with serve(folder) as served:
        everyone, wanted = served.everyone(), expected(served.url, big())
        with httpx2.stream("POST", f"{served.url}/v1/activations", json=big(), timeout=120) as answer:
            chunks = answer.iter_raw()
            data = next(chunks)
            # A terminal sends it to every process of the group.
            for process in everyone:
                os.kill(process.pid, signal.SIGINT)
            data += b"".join(chunks)
        assert sum(batch.num_rows for batch in StreamDecoder(data, wanted)) > 5000
        served.process.wait(timeout=60)
        assert_nothing_is_left(everyone, served)
