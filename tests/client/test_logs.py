"""What the client logs, and under which ids its requests can be found again."""

import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stratoscope.async_client import AsyncClient
from stratoscope.cli.logfile import JsonLines, log_to
from stratoscope.client import Client
from stratoscope.collection import collect
from stratoscope.errors import ConfigurationError
from stratoscope.fetching import idempotency_key
from stratoscope_server.engines.batched import BatchedEngine
from stratoscope_server.engines.protocol import Prompt
from stratoscope_server.engines.synthetic import SyntheticRunner
from stratoscope_server.journal import current_entry
from stratoscope_wire import ActivationsRequest, Block, Column, Stimulus
from stratoscope_wire.request import Dtype
from tests.client.tables import SMALL, make_table

if TYPE_CHECKING:
    from tests.client.conftest import FaultServer, Received

REQUEST = ActivationsRequest(stimuli=[Stimulus(id="a", text="one"), Stimulus(id="b", text="two")])


def keys(posts: "list[Received]") -> list[str]:
    return [post.headers["idempotency-key"] for post in posts]


@pytest.fixture
def log_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log file that is written until the test ends."""
    path = tmp_path / "log.jsonl"
    root = logging.getLogger("stratoscope")
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    return path


def lines(path: Path) -> list[dict[str, object]]:
    [handler] = logging.getLogger("stratoscope").handlers
    handler.close()
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_repeated_request_has_the_same_key_and_another_one_has_not(client: Client, server: "FaultServer") -> None:
    server.faults.extend([server.status(503), server.cut_after(0)])
    client.fetch(REQUEST)
    assert len(server.posts) == 3
    [key] = set(keys(server.posts))
    assert re.fullmatch("[0-9a-f]{64}", key)
    server.received.clear()
    others = [
        REQUEST.model_copy(update={"stimuli": REQUEST.stimuli[:1]}),
        REQUEST.model_copy(update={"dtype": "float16"}),
        REQUEST.model_copy(update={"add_special_tokens": False}),
        REQUEST.model_copy(update={"stimuli": [Stimulus(id="a", text="other"), REQUEST.stimuli[1]]}),
        REQUEST.model_copy(update={"stimuli": [Stimulus(id="c", text="one"), REQUEST.stimuli[1]]}),
    ]
    for other in others:
        client.fetch(other)
    assert len({key, *keys(server.posts)}) == 1 + len(others)


def test_what_is_left_after_a_cut_is_another_request(client: Client, server: "FaultServer") -> None:
    server.faults.append(server.cut_after(1))
    client.fetch(REQUEST)
    assert len(set(keys(server.posts))) == len(server.posts) == 2


def test_the_same_question_of_somebody_else_is_no_repetition(client: Client, server: "FaultServer") -> None:
    client.fetch(REQUEST)
    with Client(server.url) as other:
        other.fetch(REQUEST)
    assert len(set(keys(server.posts))) == 2
    assert idempotency_key(REQUEST, "model", "me") == idempotency_key(REQUEST, "model", "me")
    assert idempotency_key(REQUEST, "model", "me") != idempotency_key(REQUEST, "another", "me")


def test_a_request_that_the_server_is_still_working_on_is_asked_for_again_when_it_says(
    client: Client, server: "FaultServer", pauses: list[float]
) -> None:
    server.faults.append(server.status(409, "already_running", retryable=True, headers={"Retry-After": "3"}))
    assert len(client.fetch(REQUEST)) == 2
    assert len(set(keys(server.posts))) == 1
    assert 3 <= pauses[0] <= 3.5


class SlowRunner(SyntheticRunner):
    """Takes a second per batch."""

    def run(self, prompts: Sequence[Prompt], columns: Sequence[Column], dtype: Dtype) -> Block:
        time.sleep(1)
        return super().run(prompts, columns, dtype)


def test_a_real_server_never_works_twice_on_what_one_client_repeats(
    start_server: Callable[..., AbstractContextManager[str]],
) -> None:
    pauses: list[float] = []

    def wait(seconds: float) -> None:
        pauses.append(seconds)
        time.sleep(seconds)

    with (
        start_server(lambda: BatchedEngine(SlowRunner(), 64)) as url,
        Client(url, sleep=wait) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        client.model()
        answers = list(pool.map(client.try_fetch, [REQUEST, REQUEST]))
    assert [answer.error for answer in answers] == [None, None]
    assert sorted(answer.n_calls > 1 for answer in answers) == [False, True]
    assert pauses
    assert pauses[0] >= 1


async def _ask(url: str) -> None:
    async with AsyncClient(url) as client:
        await client.fetch(REQUEST)


def test_every_call_has_an_id_of_its_own_which_both_clients_choose_alike(server: "FaultServer") -> None:
    import asyncio

    with Client(server.url) as client:
        client.fetch(REQUEST)
    asyncio.run(_ask(server.url))
    given = [received.headers["x-request-id"] for received in server.received]
    assert len(set(given)) == len(given) == 4
    assert all(re.fullmatch("[0-9a-f]{16}", one) for one in given)


def test_a_real_server_takes_the_id_over_and_both_logs_have_it(
    start_server: Callable[..., AbstractContextManager[str]], caplog: pytest.LogCaptureFixture
) -> None:
    theirs: list[str] = []

    def stamp(record: logging.LogRecord) -> bool:
        if record.name == "stratoscope_server.requests" and (entry := current_entry()) is not None:
            theirs.append(entry.request_id)
        return True

    caplog.handler.addFilter(stamp)
    with caplog.at_level(logging.INFO), start_server() as url, Client(url) as client:
        caplog.clear()
        client.fetch(REQUEST)
    caplog.handler.removeFilter(stamp)
    ours = [record.facts["request_id"] for record in caplog.records if record.name == "stratoscope.transport"]  # type: ignore[attr-defined]
    assert len(ours) == 2
    for one in ours:
        assert theirs.count(one) == 1


def test_calls_retries_and_commits_are_logged_as_one_object_a_line(
    client: Client, server: "FaultServer", tmp_path: Path, log_file: Path
) -> None:
    server.faults.append(server.status(503))
    log_to(log_file)
    collect(make_table(), tmp_path / "run", client, settings=SMALL, concurrency=1)
    written = lines(log_file)
    assert all({"time", "level", "logger", "message"} <= set(line) for line in written)
    calls = [line for line in written if line["logger"] == "stratoscope.transport"]
    assert [line["url"] for line in calls] == [server.url + received.path for received in server.received]
    assert [line["status"] for line in calls][2] == 503
    [retry] = [line for line in written if "trying again" in str(line["message"])]
    assert retry["request_id"] == "r-1"
    assert "the server says 503" in str(retry["error"])
    commits = [line for line in written if str(line["message"]).startswith("committed")]
    assert sum(int(str(line["stimuli"])) for line in commits) == 30
    assert len({line["shard"] for line in commits}) == len(commits) > 1


def test_a_key_is_never_written_even_if_a_server_repeats_it(
    server: "FaultServer", log_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRATOSCOPE_API_KEY", "a-very-secret-key")
    log_to(log_file)
    server.always = server.status(503, "a-very-secret-key")
    with Client(server.url, max_retries=1, sleep=lambda _: None) as client:
        fetched = client.try_fetch(REQUEST)
    assert server.posts[0].headers["authorization"] == "Bearer a-very-secret-key"
    assert "a-very-secret-key" in str(fetched.error), "the server was to repeat it"
    text = log_file.read_text(encoding="utf-8")
    assert "[hidden]" in text
    assert "a-very-secret-key" not in text
    lines(log_file)


def test_nothing_is_said_unless_the_program_asks_for_it(
    client: Client, server: "FaultServer", capfd: pytest.CaptureFixture[str]
) -> None:
    import stratoscope

    assert [type(handler) for handler in logging.getLogger(stratoscope.__name__).handlers] == [logging.NullHandler]
    server.faults.append(server.cut_after(2))
    client.fetch(REQUEST)
    assert capfd.readouterr() == ("", "")


def test_a_log_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be written: No such file"):
        log_to(tmp_path / "nowhere" / "log.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_log_file_that_fails_is_given_up_with_a_word_and_work_goes_on(
    client: Client, log_file: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not log_file.exists()
    log_to(Path("/dev/full"))
    with caplog.at_level(logging.WARNING, "stratoscope"):
        logging.getLogger("stratoscope").setLevel(logging.INFO)
        assert len(client.fetch(REQUEST)) == 2
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert "/dev/full ends here" in said[0]
    assert "No space left" in said[0]
    assert capfd.readouterr() == ("", "")


def test_odd_characters_stay_on_their_line() -> None:
    record = logging.LogRecord("stratoscope", logging.INFO, "", 0, "two\nlines \u2028 and %s", ("ümläut",), None)
    line = JsonLines(None).format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "two\nlines \u2028 and ümläut"
