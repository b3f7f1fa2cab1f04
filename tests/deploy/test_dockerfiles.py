"""The two images, as far as they can be judged without building them; tests/deploy/replay.py runs their steps."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.dockerfiles import Instruction, read, stages

ROOT = Path(__file__).parents[2]
NAMES = ["Dockerfile.cpu", "Dockerfile.gpu"]
LOCK = (ROOT / "deploy" / "requirements-gpu.txt").read_text(encoding="utf-8")
LOCKED = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+) \\$", LOCK, re.MULTILINE))

each_image = pytest.mark.parametrize("name", NAMES)


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    hadolint = Path(sys.executable).with_name("hadolint")
    command = [str(hadolint), "--no-color", "--disable-ignore-pragma", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@each_image
def test_hadolint_finds_nothing_but_what_is_excused_where_it_stands(name: str) -> None:
    excused = set(re.findall(r"^# hadolint ignore=(\S+)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE))
    found = set(re.findall(r" (DL\d+|SC\d+) ", lint(ROOT / name).stdout))
    # Equal, not fewer: an excuse that nothing needs any more has to go.
    assert found == excused


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM python\nRUN pip install numpy\n", encoding="utf-8")
    assert {"DL3006", "DL3013"} <= set(re.findall(r"DL\d+", lint(wrong).stdout))


def last_stage(name: str) -> list[Instruction]:
    return stages(read(name))[-1]


def only(name: str, word: str) -> Instruction:
    (instruction,) = [instruction for instruction in last_stage(name) if instruction.word == word]
    return instruction


@each_image
def test_the_server_is_started_without_a_shell_and_as_nobody_in_particular(name: str) -> None:
    assert only(name, "ENTRYPOINT").arguments == ["stratoscope-server"]
    assert only(name, "USER").rest == "10001:10001"
    assert only(name, "STOPSIGNAL").rest == "SIGTERM"
    assert '["python", "/opt/stratoscope/healthcheck.py"]' in only(name, "HEALTHCHECK").rest


@each_image
def test_every_stage_starts_from_one_pinned_python(name: str) -> None:
    first = read(name)[0]
    tag = first.pairs["PYTHON_IMAGE"]
    assert first.word == "ARG"
    assert re.fullmatch(r"docker\.io/library/python:3\.11\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?", tag)
    assert all(stage[0].rest.split()[0] == "${PYTHON_IMAGE}" for stage in stages(read(name)))


@each_image
def test_nothing_is_downloaded_but_by_pip_and_apt(name: str) -> None:
    for instruction in read(name):
        assert instruction.word != "ADD"
        assert not re.search(r"\b(curl|wget|git clone)\b", instruction.rest)


@each_image
def test_whatever_is_copied_from_the_repository_is_sent_to_the_builder(name: str) -> None:
    allowed = [
        line[1:].rstrip("/")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    ]
    copied = [
        instruction.rest.split()[0]
        for instruction in read(name)
        if instruction.word == "COPY" and not instruction.rest.startswith("--from")
    ]
    assert copied
    for source in copied:
        assert source in allowed
        assert (ROOT / source).exists()


@each_image
def test_no_variable_of_the_image_holds_a_secret(name: str) -> None:
    for instruction in read(name):
        if instruction.word in ("ENV", "ARG"):
            for variable, value in instruction.pairs.items():
                if re.search(r"PASSWORD|TOKEN|SECRET|KEY", variable):
                    assert value.startswith("/run/secrets/"), variable


def test_everything_the_gpu_server_writes_goes_to_a_volume_or_to_tmp() -> None:
    volumes = only("Dockerfile.gpu", "VOLUME").arguments
    assert volumes == ["/cache/huggingface", "/cache/compiled"]
    environ = only("Dockerfile.gpu", "ENV").pairs
    caches = {name: value for name, value in environ.items() if re.search(r"CACHE|HOME$|_ROOT|_BASE", name)}
    assert len(caches) >= 9
    del caches["CUDA_HOME"]
    assert all(value.startswith(tuple(volumes)) for value in caches.values())


def pyproject(folder: str) -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"])


def test_the_lock_of_the_gpu_image_is_whole_and_hashed() -> None:
    assert len(LOCKED) > 150
    assert LOCKED["vllm"] == "0.32.0"
    blocks = re.split(r"\n(?=[A-Za-z0-9])", LOCK)
    pinned = [block for block in blocks if "==" in block.splitlines()[0] and not block.startswith("#")]
    assert len(pinned) == len(LOCKED)
    assert all("--hash=sha256:" in block for block in pinned)


def test_the_lock_was_made_from_the_list_beside_it() -> None:
    text = (ROOT / "deploy" / "requirements-gpu.in").read_text(encoding="utf-8")
    wanted = [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]
    assert len(wanted) > 10
    for requirement in wanted:
        assert requirement.specifier.contains(LOCKED[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("folder", ["shared", "services"])
def test_the_lock_of_the_gpu_image_gives_our_own_distributions_what_they_ask_for(folder: str) -> None:
    project = pyproject(folder)
    wanted = [*project["dependencies"], *project.get("optional-dependencies", {}).get("vllm", [])]
    assert wanted
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name != "stratoscope-wire" and (requirement.marker is None or requirement.marker.evaluate()):
            assert requirement.specifier.contains(LOCKED[name]), requirement


def test_the_toolkit_of_the_gpu_image_is_of_one_cuda_version() -> None:
    parts = [name for name in LOCKED if re.match(r"nvidia-(cuda-|nvvm|nvjitlink)", name)]
    assert len(parts) >= 7
    assert all(LOCKED[name].startswith("13.0.") for name in parts)
    assert LOCKED["torch"] == "2.13.0"


@each_image
def test_the_version_of_the_image_is_the_version_of_the_server(name: str) -> None:
    version = pyproject("services")["version"]
    tag = f"stratoscope-server:{version}-{name.removeprefix('Dockerfile.')}"
    assert f"--tag {tag} ." in (ROOT / name).read_text(encoding="utf-8")
    assert f"image: {tag}\n" in (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
