"""The steps of the CPU image are taken in a folder, and the server is started from it as the image would start it."""

import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pyarrow as pa
import pytest

from tests.deploy.dockerfiles import read, stages
from tests.deploy.replay import Replay, replay

pytestmark = pytest.mark.slow

KEY = "replayed-key-0123456789"


def test_both_images_build_our_wheels_by_the_same_steps() -> None:
    assert stages(read("Dockerfile.cpu"))[0] == stages(read("Dockerfile.gpu"))[0]


INDEX_OF_CPU_BUILDS = '--extra-index-url "${TORCH_INDEX}" '


def without_index() -> tuple[str, ...]:
    """Where pip is pointed to a folder of wheels that holds the CPU build of torch, that one is taken."""
    folders = os.environ.get("PIP_FIND_LINKS", "").split()
    held = any(list(Path(folder).glob("torch-2.13.0+cpu-*.whl")) for folder in folders)
    return (INDEX_OF_CPU_BUILDS,) if held else ()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replay]:
    folder = tmp_path_factory.mktemp("image")
    replayed = replay("Dockerfile.cpu", folder, without_index())
    installed = folder / "opt" / "stratoscope"
    for path in [installed, *installed.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)
    yield replayed
    for path in [installed, *installed.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(path.stat().st_mode | stat.S_IWUSR)
    shutil.rmtree(folder)


def confined() -> list[str]:
    """What goes before a command so that it can write only where its permissions say; root could write anywhere."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    assert setpriv is not None
    return [setpriv, "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]


@dataclass(frozen=True)
class Running:
    """The server, its address, and the command of the health check with the variables both have."""

    process: subprocess.Popen[str]
    url: str
    check: list[str]
    environ: dict[str, str]


@pytest.fixture(scope="module")
def server(image: Replay, tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[Running]:
    tmp = tmp_path_factory.mktemp("tmp")
    keys = tmp / "api_keys"
    keys.write_text(KEY + "\n", encoding="utf-8")
    port = free_port()
    environ = image.environ | {
        "HOME": str(tmp),
        "STRATOSCOPE_HOST": "127.0.0.1",
        "STRATOSCOPE_PORT": str(port),
        "STRATOSCOPE_API_KEY_FILE": str(keys),
    }
    last = {instruction.word: instruction for instruction in stages(read("Dockerfile.cpu"))[-1]}
    entrypoint = last["ENTRYPOINT"].arguments
    assert entrypoint is not None
    program = str(image.folder / "opt" / "stratoscope" / "bin" / entrypoint[0])
    check = image.moved(last["HEALTHCHECK"].rest.partition("CMD ")[2])
    with (tmp / "log").open("w") as log:
        process = subprocess.Popen([*confined(), program], cwd=tmp, env=environ, stdout=log, stderr=log, text=True)
    arguments = [word.strip('" ') for word in check.strip("[]").split(",")]
    try:
        yield Running(process, f"http://127.0.0.1:{port}", arguments, environ)
    finally:
        process.kill()
        process.wait()


def healthy(server: Running) -> bool:
    # The name of the program is looked up in the PATH of the image.
    program = shutil.which(server.check[0], path=server.environ["PATH"])
    assert program is not None
    ended = subprocess.run([program, *server.check[1:]], env=server.environ, check=False, capture_output=True)
    return ended.returncode == 0


def test_all_steps_were_taken_but_those_that_only_root_can_take(image: Replay) -> None:
    assert len(image.ran) == 5
    assert len(image.left_out) == 1
    assert image.left_out[0].startswith("groupadd")


def test_the_index_of_cpu_builds_is_asked_for_nothing_that_is_not_known_by_its_hash() -> None:
    (step,) = [step.rest for step in read("Dockerfile.cpu") if "${TORCH_INDEX}" in step.rest]
    assert step.count(INDEX_OF_CPU_BUILDS) == 1
    assert step.count("pip install") == step.count("pip install --require-hashes") == 1


def test_torch_is_the_cpu_build(image: Replay) -> None:
    packages = image.folder / "opt" / "stratoscope" / "lib"
    assert len(list(packages.glob("*/site-packages/torch-2.13.0+cpu.dist-info"))) == 1
    assert list(packages.glob("*/site-packages/nvidia*")) == []


def test_the_confined_server_could_not_write_to_what_the_image_holds(image: Replay) -> None:
    for folder in ("models", "lib"):
        target = image.folder / "opt" / "stratoscope" / folder / "written"
        ended = subprocess.run([*confined(), "touch", target], capture_output=True, check=False)
        assert ended.returncode != 0
        assert b"Permission denied" in ended.stderr


def test_the_server_of_the_image_becomes_healthy_answers_and_stops(image: Replay, server: Running) -> None:
    deadline = time.monotonic() + 120
    while not healthy(server):
        assert server.process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.5)
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        assert client.get("/readyz").status_code == 401
        body = {
            "stimuli": [{"id": "s1", "text": "A church and organ"}],
            "capture": {"sites": ["resid_post"], "layers": [29], "select": ["last"]},
        }
        headers = {"Authorization": f"Bearer {KEY}"}
        assert client.get("/v1/model", headers=headers).json()["model"] == "smollm2-135m"
        answer = client.post("/v1/activations", json=body, headers=headers)
    table = pa.ipc.open_stream(answer.content).read_all()
    assert table.num_rows == 1
    assert len(table["resid_post.29"][0].as_py()) == 576
    server.process.send_signal(signal.SIGTERM)
    # uvicorn ends by the signal that stopped it, once all is closed.
    assert server.process.wait(timeout=60) in (0, -signal.SIGTERM)
    assert len(list((image.folder / "opt" / "stratoscope" / "models").iterdir())) == 1
