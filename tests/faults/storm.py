"""Crowds: more requests at once than may run and wait, for a moment and for minutes."""

import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import httpx2

from stratoscope import Client
from stratoscope_server.engines.batched import BatchedEngine
from stratoscope_server.engines.protocol import Encoded, Prompt
from stratoscope_server.engines.synthetic import SyntheticRunner, SyntheticTokenizer
from stratoscope_server.settings import Settings
from stratoscope_wire import ActivationsRequest, Block, Capture, Column, Stimulus
from stratoscope_wire.request import Dtype
from tests.conftest import running_server
from tests.faults.fault import Fault, World
from tests.faults.gauges import held, seconds_until
from tests.faults.processes import ServerProcess
from tests.faults.tally import Tally
from tests.faults.truth import SyntheticTruth, check_tables
from tests.faults.verdicts import Verdicts

N_AT_ONCE: Final = 100
RUNNING: Final = 4
QUEUED: Final = 16
N_CLIENTS: Final = 50
N_TEXTS: Final = 4
GOODPUT: Final = 0.9
ATTEMPTS: Final = 2.0


class CountingTokenizer(SyntheticTokenizer):
    """Counts the texts that it tokenises."""

    def __init__(self) -> None:
        self.n_texts = 0

    def encode(self, text: str, *, add_special_tokens: bool) -> Encoded:
        self.n_texts += 1
        return super().encode(text, add_special_tokens=add_special_tokens)


class HeldRunner(SyntheticRunner):
    """Computes nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer: CountingTokenizer = CountingTokenizer()
        self.gate = threading.Event()

    def run(self, prompts: Sequence[Prompt], columns: Sequence[Column], dtype: Dtype) -> Block:
        assert self.gate.wait(120), "nobody let the runner go"
        return super().run(prompts, columns, dtype)


def more_requests_at_once_than_places(world: World) -> Tally:
    verdicts = Verdicts()
    for _ in range(world.pick(2, 20)):
        runner = HeldRunner()
        with running_server(lambda runner=runner: BatchedEngine(runner), _settings()) as url:  # type: ignore[misc]
            try:
                _crowd(url, runner, verdicts)
            finally:
                runner.gate.set()
    return verdicts.tally


def _settings() -> Settings:
    return Settings(engine="synthetic", port=0, max_running=RUNNING, max_queued=QUEUED, max_connections=2 * N_AT_ONCE)


def _crowd(url: str, runner: HeldRunner, verdicts: Verdicts) -> None:
    answers: list[httpx2.Response] = []
    content = json.dumps({"stimuli": [{"id": "s", "text": "A church and organ"}]})

    def ask() -> None:
        answers.append(httpx2.post(f"{url}/v1/activations", content=content, timeout=120))

    threads = [threading.Thread(target=ask) for _ in range(N_AT_ONCE)]
    for thread in threads:
        thread.start()
    n_refused = N_AT_ONCE - RUNNING - QUEUED
    refused_s = seconds_until(lambda: len(answers) >= n_refused, 30)
    places = held(url)[:2]
    n_tokenised = runner.tokenizer.n_texts
    verdicts.judge(refused_s < 30 and places == (RUNNING, QUEUED), f"{places} run and wait, {len(answers)} refused")
    verdicts.judge(n_tokenised == RUNNING + QUEUED, f"{n_tokenised} texts were tokenised")
    for answer in answers[:]:
        told = answer.status_code == 429 and answer.json()["error"]["code"] == "too_busy"
        verdicts.judge(told and int(answer.headers.get("Retry-After", 0)) >= 1, f"refused with {answer.status_code}")
    runner.gate.set()
    for thread in threads:
        thread.join(60)
    statuses = Counter(answer.status_code for answer in answers)
    verdicts.judge(statuses == {200: RUNNING + QUEUED, 429: n_refused}, f"in the end {statuses}")


@dataclass
class Attempts(httpx2.BaseTransport):
    """The network of one client, which notes each answer's status and whether it says when to come back."""

    network: httpx2.HTTPTransport = field(default_factory=httpx2.HTTPTransport)
    statuses: Counter[int] = field(default_factory=Counter)
    n_unguided: int = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = self.network.handle_request(request)
        if request.url.path == "/v1/activations":
            self.statuses[response.status_code] += 1
            self.n_unguided += response.status_code == 429 and int(response.headers.get("Retry-After", 0)) < 1
        return response

    def close(self) -> None:
        self.network.close()


class Stormer:
    """A client that fetches one request after another until the time is up, and checks what it gets."""

    def __init__(self, url: str, name: str, until: float) -> None:
        self.attempts = Attempts()
        self.n_items = self.n_bad = self.n_failed = 0
        self._url = url
        self._name = name
        self._until = until
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        number = 0
        with Client(self._url, transport=self.attempts, timeout=60) as client:
            while time.monotonic() < self._until:
                number += 1
                self._fetch(client, number)

    def _fetch(self, client: Client, number: int) -> None:
        texts = {f"{self._name}/{number}/{k}": f"{self._name} number {number} text {k}" for k in range(N_TEXTS)}
        stimuli = [Stimulus(id=name, text=text) for name, text in texts.items()]
        fetched = client.try_fetch(ActivationsRequest(stimuli=stimuli, capture=Capture(layers=[3])))
        census = check_tables(fetched.batches, texts, ("last",), SyntheticTruth())
        self.n_items += len(census.there)
        self.n_failed += len(fetched.missing)
        self.n_bad += census.doubled + census.wrong


def a_storm_of_retries(world: World) -> Tally:
    verdicts = Verdicts()
    seconds = world.pick(10, 300)
    flags = ("--illness", "paced", "--max-connections", "128", "--max-queued", str(QUEUED))
    with ServerProcess(world, *flags, program="tests.faults.ill") as server:
        _, alone, _ = _storm(server.url, 1, seconds / 3)
        stormers, rate, ended = _storm(server.url, N_CLIENTS, seconds)
        attempts = sum((stormer.attempts.statuses for stormer in stormers), Counter[int]())
        n_items = sum(stormer.n_items for stormer in stormers)
        n_failed = sum(stormer.n_failed for stormer in stormers)
        per_item = N_TEXTS * attempts.total() / max(1, n_items + n_failed)
        print(
            f"storm: {rate:.1f} items/s of {alone:.1f} alone, {n_items} items, {n_failed} given up, {dict(attempts)}, "
            f"{per_item:.2f} attempts an item, fewest items of a client {min(s.n_items for s in stormers)}"
        )
        n_unguided = sum(stormer.attempts.n_unguided for stormer in stormers)
        n_refused = attempts[429]
        verdicts.tally += Tally(injected=n_refused, survived=n_refused - n_unguided)
        verdicts.judge(n_refused > 0, "nobody was refused: there was no storm")
        verdicts.judge(ended, "a client did not end")
        verdicts.judge(rate >= GOODPUT * alone, f"{rate:.1f} items/s in the storm, {alone:.1f} alone")
        verdicts.judge(per_item <= ATTEMPTS, f"{per_item:.2f} attempts an item")
        verdicts.judge(set(attempts) <= {200, 429}, f"statuses {dict(attempts)}")
        verdicts.tally += Tally(wrong=sum(stormer.n_bad for stormer in stormers), lost=n_failed)
    return verdicts.tally


def _storm(url: str, n_clients: int, seconds: float) -> tuple[list[Stormer], float, bool]:
    """Let clients ask for so long; return them, items a second, and whether all ended."""
    began = time.monotonic()
    stormers = [Stormer(url, f"client{number}", began + seconds) for number in range(n_clients)]
    time.sleep(seconds)
    n_items = sum(stormer.n_items for stormer in stormers)
    ended = not [stormer for stormer in stormers if not stormer.join(200)]
    return stormers, n_items / seconds, ended


FAULTS: Final = (
    Fault("S13", "100 requests at once where 20 have a place", more_requests_at_once_than_places),
    Fault("F32", "50 clients where 20 have a place, for long", a_storm_of_retries, small_s=150, full_s=900),
)
