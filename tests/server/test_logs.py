"""The log of a real server process: one line per request with its cost and its end, and the id in every line."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

BODY = {
    "stimuli": [{"id": "s1", "text": "A church and organ"}, {"id": "s2", "text": "A church"}],
    "capture": {"sites": ["resid_post"], "layers": [3], "select": ["all"]},
}
KEY = "second-key-0123456789"


@dataclass
class Running:
    """A server process and the lines that it has logged so far."""

    url: str = ""
    lines: list[str] = field(default_factory=list)

    def wait_for(self, words: str) -> str:
        """Return the first line with these words; it is written after the answer has been read."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if found := [line for line in self.lines if words in line]:
                return found[0]
            time.sleep(0.01)
        raise AssertionError(f"no line has {words!r}: {self.lines}")

    def entry(self, request_id: str) -> dict[str, Any]:
        """Return the JSON line about a request."""
        self.wait_for(f'"request_id": "{request_id}", "route"')
        lines = [line for line in map(json.loads, self.lines) if line.get("request_id") == request_id]
        return next(line for line in lines if "route" in line)


@contextmanager
def serving(*flags: str, program: tuple[str, ...] = ("-m", "stratoscope_server")) -> Iterator[Running]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("STRATOSCOPE_")}
    command = [sys.executable, "-W", "error", *program, "--engine", "synthetic", "--port", "0", *flags]
    running = Running()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stderr is not None
        errors = process.stderr
        reader = threading.Thread(target=lambda: running.lines.extend(line.rstrip("\n") for line in errors))
        reader.start()
        try:
            found = re.search(r"running on (http://127\.0\.0\.1:\d+)", running.wait_for("running on"))
            assert found is not None
            running.url = found.group(1)
            running.wait_for("ready: ")
            yield running
        finally:
            process.terminate()
            process.wait(timeout=30)
            reader.join(timeout=30)


def post(url: str, request_id: str, body: object = None, key: str | None = None) -> httpx2.Response:
    headers = {"X-Request-Id": request_id} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    return httpx2.post(f"{url}/v1/activations", json=BODY if body is None else body, headers=headers)


def test_a_json_log_has_one_line_per_request_with_its_cost_its_key_and_its_end(key_file: Path) -> None:
    with serving("--log-format", "json", "--api-key-file", str(key_file)) as server:
        answer = post(server.url, "asked-1", key=KEY)
        assert answer.status_code == 200
        line = server.entry("asked-1")
        refused = post(server.url, "asked-2", key="unknown-key-0123456789")
        assert refused.status_code == 401
        other = server.entry("asked-2")
    assert line.pop("seconds") > 0
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    assert line == {
        "level": "info",
        "logger": "stratoscope_server.requests",
        "message": "POST /v1/activations",
        "request_id": "asked-1",
        "route": "/v1/activations",
        "status": 200,
        "key": "key-2",
        "stimuli": 2,
        "tokens": 8,
        "rows": 8,
        "bytes": int(answer.headers["X-Expected-Bytes"]),
        "end": "ok",
    }
    assert (other["status"], "key" in other, "end" in other) == (401, False, False)


def test_every_line_of_a_json_log_is_an_object_with_time_level_logger_and_message() -> None:
    with serving("--log-format", "json") as server:
        post(server.url, "asked-1")
        server.entry("asked-1")
    lines = [json.loads(line) for line in server.lines]
    assert len(lines) >= 5
    assert {"stratoscope_server.requests", "stratoscope_server.station", "uvicorn.error"} <= {
        line["logger"] for line in lines
    }
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)


def test_a_text_log_tells_the_same() -> None:
    with serving() as server:
        post(server.url, "asked-1")
        line = server.wait_for(" asked-1 ")
    assert re.search(r" INFO stratoscope_server\.requests: asked-1 POST /v1/activations route=/v1/activations ", line)
    assert re.search(r" status=200 seconds=\d+\.\d+ ", line)
    assert line.endswith(" key=anonymous stimuli=2 tokens=8 rows=8 bytes=2048 end=ok")


FAULTY = """
import sys
from stratoscope_server import __main__ as server
from stratoscope_server.engines import batched, synthetic
inner = synthetic.SyntheticRunner.run
def run(self, prompts, columns, dtype):
    if any(prompt.stimulus_id == "broken" for prompt in prompts):
        raise RuntimeError("a torn cable")
    return inner(self, prompts, columns, dtype)
synthetic.SyntheticRunner.run = run
server.main()
"""


def test_the_cause_of_a_failure_is_logged_under_the_requests_id_and_not_told_to_the_client(tmp_path: Path) -> None:
    program = tmp_path / "faulty.py"
    program.write_text(FAULTY)
    with serving("--log-format", "json", "--max-batch-tokens", "8", program=(str(program),)) as server:
        early = post(server.url, "early", {"stimuli": [{"id": "broken", "text": "A church"}]})
        assert early.status_code == 500
        assert "a torn cable" not in early.text
        server.wait_for('"request_id": "early", "route"')
        long = [{"id": f"s{number}", "text": "A church and organ in a town"} for number in range(4)]
        with pytest.raises(httpx2.RemoteProtocolError):
            post(
                server.url,
                "late",
                {"stimuli": [*long, {"id": "broken", "text": "A church and organ in a town, and a day"}]},
            )
        server.wait_for('"request_id": "late", "route"')
    for request_id in ("early", "late"):
        lines = [line for line in map(json.loads, server.lines) if line.get("request_id") == request_id]
        (cause,) = [line for line in lines if line["level"] == "error"]
        assert "RuntimeError: a torn cable" in cause["traceback"]
    (entry,) = [line for line in lines if "route" in line]
    assert (entry["status"], entry["end"]) == (200, "error")


def test_a_path_with_a_line_break_in_it_does_not_forge_a_line() -> None:
    with serving() as server:
        httpx2.get(f"{server.url}/a%0A2026-01-01%20INFO%20forged", headers={"X-Request-Id": "asked-1"})
        line = server.wait_for(" asked-1 ")
        assert "GET /a%0A2026-01-01%20INFO%20forged route=unmatched status=404" in line
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            connection.sendall(b"GET /\xc2\x85forged HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            connection.makefile("rb").read()
    assert not any(line.startswith(("2026-01-01", "forged")) for line in server.lines)


def test_a_reader_that_left_is_told_apart_from_an_answer_that_ended() -> None:
    with serving("--log-format", "json", "--max-batch-tokens", "64") as server:
        many = [{"id": f"s{number}", "text": "word " * 60} for number in range(200)]
        body = {"stimuli": many, "capture": {"layers": "all", "select": ["all"]}}
        with httpx2.stream(
            "POST", f"{server.url}/v1/activations", json=body, headers={"X-Request-Id": "left"}
        ) as answer:
            next(answer.iter_raw())
        entry = server.entry("left")
    assert (entry["status"], entry["end"]) == (200, "disconnected")


def test_a_client_that_leaves_before_its_body_is_whole_is_no_failure_of_the_server() -> None:
    with serving("--log-format", "json") as server:
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            head = "POST /v1/activations HTTP/1.1\r\nHost: x\r\nX-Request-Id: left\r\nContent-Length: 100\r\n\r\n"
            connection.sendall(head.encode() + b'{"stimuli"')
            # Let the server begin to read: it is to be left in the middle.
            time.sleep(0.3)
        entry = server.entry("left")
    assert (entry["route"], entry["status"], entry["code"]) == ("/v1/activations", 499, "client_gone")
    assert [line for line in map(json.loads, server.lines) if line["level"] == "error"] == []
