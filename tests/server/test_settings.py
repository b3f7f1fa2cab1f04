import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from stratoscope_server.settings import Settings, SettingsError
from stratoscope_wire import Limits
from tests.listening import read_address


def test_flags_win_over_variables_and_variables_over_defaults() -> None:
    environ = {"STRATOSCOPE_PORT": "9000", "STRATOSCOPE_MAX_STIMULI": "5", "PATH": "/bin"}
    settings = Settings.from_args(["--port", "9001", "--dtype", "bfloat16"], environ)
    assert (settings.port, settings.max_stimuli, settings.dtype) == (9001, 5, "bfloat16")
    assert settings.model == "smollm2-135m"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("args", "environ", "message"),
    [
        (["--modle", "x"], {}, "unknown argument --modle; did you mean --model?"),
        (["stray"], {}, "unknown argument stray"),
        ([], {"STRATOSCOPE_MAX_STIMULUS": "3"}, "unknown variable .*; did you mean STRATOSCOPE_MAX_STIMULI?"),
        (["--port", "70000"], {}, r"--port \(STRATOSCOPE_PORT\): .*65535"),
        (["--max-stimuli", "0"], {}, "--max-stimuli .*greater than or equal to 1"),
        ([], {"STRATOSCOPE_PORT": "eighty"}, "STRATOSCOPE_PORT.*valid integer"),
        (["--engine", "vlm"], {}, "invalid choice: 'vlm'"),
        (["--mod", "x"], {}, "unknown argument --mod"),
        (["--engine", "vllm", "--random-weights", "1"], {}, "--random-weights is of the engine torch, not of vllm"),
        (["--plants", "facts.json"], {}, "--plants is of the engine synthetic, not of torch"),
        (["--engine", "synthetic", "--checkpoint-sha256", "sums"], {}, "the synthetic engine loads no checkpoint"),
        (["--log-format", "xml"], {}, "invalid choice: 'xml'"),
        (["--host", "0.0.0.0"], {}, "can be reached from other machines: give --api-key-file"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_fix(args: list[str], environ: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings.from_args(args, environ)


def test_the_clients_own_variables_are_no_error() -> None:
    Settings.from_args([], {"STRATOSCOPE_BASE_URL": "http://x", "STRATOSCOPE_API_KEY": "secret"})


def test_every_limit_is_a_setting_but_the_one_that_the_engine_has() -> None:
    assert set(Limits.model_fields) - set(Settings.model_fields) == {"max_stimulus_bytes"}


def test_a_file_of_plants_that_cannot_be_used_stops_the_server(tmp_path: Path) -> None:
    path = tmp_path / "plants.json"
    path.write_text("{}[", encoding="utf-8")
    ended = run_server("--engine", "synthetic", "--plants", str(path))
    assert ended.returncode == 2
    assert str(path) in ended.stderr


@pytest.mark.parametrize("content", ["", "# only a remark\n", "short\n"])
def test_a_key_file_without_a_usable_key_stops_the_server(content: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(content, encoding="utf-8")
    ended = run_server("--engine", "synthetic", "--api-key-file", str(path))
    assert ended.returncode == 2
    assert str(path) in ended.stderr


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--engin", "synthetic"], 2, "did you mean --engine"),
        (["--engine", "synthetic", "--api-key-file", "/nowhere/keys"], 2, "/nowhere/keys"),
        (["--help"], 0, "--max-response-bytes"),
    ],
)
def test_the_command_ends_with_a_code_and_words_that_mean_something(args: list[str], code: int, words: str) -> None:
    ended = run_server(*args)
    assert ended.returncode == code
    assert words in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


def run_server(*args: str) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("STRATOSCOPE_")}
    command = [sys.executable, "-W", "error", "-m", "stratoscope_server", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ, check=False)


def test_a_server_process_answers_and_stops_cleanly_when_told_to() -> None:
    command = [sys.executable, "-W", "error", "-m", "stratoscope_server", "--engine", "synthetic", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        url, log = read_address(process)
        assert url.startswith("http://127.0.0.1:")
        assert httpx2.get(f"{url}/healthz").json() == {"status": "alive"}
        process.send_signal(signal.SIGTERM)
        log += process.communicate(timeout=30)[1]
        assert process.returncode == -signal.SIGTERM
    assert "shutdown complete" in log
    assert "Traceback" not in log
