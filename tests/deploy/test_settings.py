"""What the deployment sets is what the server reads."""

import re
from pathlib import Path
from typing import Any

import pytest

from stratoscope_server.settings import PREFIX, Settings
from tests.deploy.dockerfiles import read

ROOT = Path(__file__).parents[2]

KNOWN = {PREFIX + name.upper() for name in Settings.model_fields}


def variables_of(environment: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in environment.items() if name.startswith(PREFIX)}


def image_environment(name: str) -> dict[str, str]:
    return {
        variable: value
        for instruction in read(name)
        if instruction.word == "ENV"
        for variable, value in instruction.pairs.items()
    }


def test_every_setting_that_compose_passes_is_one_that_the_server_has(project: dict[str, Any]) -> None:
    passed = variables_of(project["services"]["gpu"]["environment"])
    assert len(passed) >= 10
    assert set(passed) <= KNOWN


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.gpu"])
def test_every_setting_of_an_image_is_one_that_the_server_has(name: str) -> None:
    assert len(variables_of(image_environment(name))) >= 4
    assert set(variables_of(image_environment(name))) <= KNOWN


def test_the_settings_of_the_cpu_image_are_accepted_by_the_server() -> None:
    settings = Settings.from_args([], variables_of(image_environment("Dockerfile.cpu")))
    assert settings.engine == "torch"
    assert settings.model == "smollm2-135m"
    assert settings.host == "0.0.0.0"


def test_the_settings_of_the_gpu_server_are_accepted_by_the_server(project: dict[str, Any]) -> None:
    image = variables_of(image_environment("Dockerfile.gpu"))
    passed = variables_of(project["services"]["gpu"]["environment"])
    given = {name: value for name, value in (image | passed).items() if value is not None}
    settings = Settings.from_args([], given)
    assert settings.model == "meta-llama/Llama-3.3-70B-Instruct"
    assert re.fullmatch(r"[0-9a-f]{40}", settings.revision or "")
    assert settings.dtype == "bfloat16"


def test_every_variable_of_the_example_is_used_and_every_one_used_is_in_the_example(
    env_example: dict[str, str],
) -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    filled_in = set(re.findall(r"\$\{(\w+):\?", text))
    passed_on = set(re.findall(r"^      ([A-Z_]+):$", text, re.MULTILINE))
    assert len(filled_in) > 10
    assert len(passed_on) > 5
    read_by_compose_itself = {"COMPOSE_PROFILES"}
    assert set(env_example) == filled_in | passed_on | read_by_compose_itself


def test_a_default_is_written_once() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert not re.search(r"\$\{\w+:?-", text)


def test_a_limit_that_is_set_reaches_the_server_and_one_that_is_not_leaves_its_default(
    project: dict[str, Any], run_compose: Any, tmp_path: Path
) -> None:
    assert project["services"]["gpu"]["environment"]["STRATOSCOPE_MAX_STIMULI"] is None
    env_file = tmp_path / "env"
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert "# STRATOSCOPE_MAX_STIMULI=256" in example
    env_file.write_text(example.replace("# STRATOSCOPE_MAX_STIMULI=256", "STRATOSCOPE_MAX_STIMULI=32"))
    ended = run_compose("--profile", "gpu", "config", env_file=env_file)
    assert 'STRATOSCOPE_MAX_STIMULI: "32"' in ended.stdout


def test_the_folder_of_the_embedded_model_is_the_one_it_was_converted_into() -> None:
    folder = image_environment("Dockerfile.cpu")["STRATOSCOPE_CACHE_DIR"]
    (conversion,) = [step.rest for step in read("Dockerfile.cpu") if "provide_smollm2(" in step.rest]
    assert f"provide_smollm2(pathlib.Path('{folder}'))" in conversion
