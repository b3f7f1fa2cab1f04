"""What `docker compose up` would start, as the real Docker Compose reads the file."""

import ipaddress
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

RunCompose = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parents[2]
SCHEMA = Path(__file__).parent / "compose-spec" / "compose-spec.json"
SERVICES = ["cpu", "gpu", "grafana", "prometheus"]
SERVERS = ["cpu", "gpu"]


def test_the_vendored_schema_is_the_one_inside_docker_compose(compose_program: Path) -> None:
    assert SCHEMA.read_bytes().rstrip() in compose_program.read_bytes()


def filled_in(value: Any, variables: dict[str, str]) -> Any:
    """Fill in ``${NAME:?message}``, as Compose does before it looks at a value."""
    if isinstance(value, dict):
        return {key: filled_in(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [filled_in(item, variables) for item in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+):\?[^}]*\}", lambda match: variables[match[1]], value)
    return value


def test_the_file_keeps_to_the_compose_specification(compose_file: dict[str, Any], env_example: dict[str, str]) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(schema)(schema)
    whole = filled_in(compose_file, env_example)
    assert "${" not in json.dumps(whole)
    assert [error.message for error in validator.iter_errors(whole)] == []
    # The schema does refuse what it does not know.
    assert not validator.is_valid(whole | {"services": whole["services"] | {"gpu": {"images": "x"}}})


def test_docker_compose_keeps_to_the_compose_specification_itself(project: dict[str, Any]) -> None:
    assert sorted(project["services"]) == SERVICES


@pytest.mark.parametrize(
    ("profiles", "services"),
    [
        ([], ["gpu"]),
        (["gpu"], ["gpu"]),
        (["cpu"], ["cpu"]),
        (["gpu", "monitoring"], ["gpu", "grafana", "prometheus"]),
        (["cpu", "monitoring"], ["cpu", "grafana", "prometheus"]),
    ],
    ids=lambda names: "+".join(names) or "default",
)
def test_a_profile_starts_its_services_and_no_others(
    run_compose: RunCompose, profiles: list[str], services: list[str]
) -> None:
    options = [word for profile in profiles for word in ("--profile", profile)]
    ended = run_compose(*options, "config", "--services")
    assert sorted(ended.stdout.split()) == services, ended.stderr


def test_without_an_env_file_compose_refuses_and_says_what_to_do(run_compose: RunCompose, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    ended = run_compose("--profile", "gpu", "config", env_file=empty)
    assert ended.returncode != 0
    assert "required variable STRATOSCOPE_MODEL is missing a value: copy .env.example to .env" in ended.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_has_a_privilege(project: dict[str, Any], name: str) -> None:
    service = project["services"][name]
    for key in ("privileged", "cap_add", "devices", "ipc", "network_mode", "pid", "userns_mode", "uts", "cgroup"):
        assert key not in service, key
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert 0 < service["pids_limit"] <= 4096
    assert int(service["mem_limit"]) > 0
    assert service["restart"] == "unless-stopped"
    uid = service["user"].split(":")[0]
    assert uid.isdigit()
    assert int(uid) > 0


@pytest.mark.parametrize("name", SERVICES)
def test_every_port_is_on_loopback(project: dict[str, Any], name: str) -> None:
    ports = project["services"][name]["ports"]
    assert len(ports) == 1
    assert all(ipaddress.ip_address(port["host_ip"]).is_loopback for port in ports)


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_mounts_more_of_the_host_than_our_own_files_and_those_read_only(
    project: dict[str, Any], name: str
) -> None:
    for mount in project["services"][name].get("volumes", []):
        if mount["type"] == "volume":
            assert mount["source"] in project["volumes"]
        else:
            assert mount["read_only"] is True
            assert (ROOT / "deploy") in Path(mount["source"]).parents
            assert Path(mount["source"]).is_file()


def test_every_secret_is_a_file_and_is_used(project: dict[str, Any]) -> None:
    assert project["secrets"]
    assert all(set(secret) == {"name", "file"} for secret in project["secrets"].values())
    used = {secret["source"] for service in project["services"].values() for secret in service.get("secrets", [])}
    assert used == set(project["secrets"])


def test_no_variable_holds_a_secret(project: dict[str, Any]) -> None:
    for service in project["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|TOKEN|SECRET|KEY", name) and not re.search(r"MAX_\w*TOKENS", name):
                assert value.startswith("/run/secrets/"), name


def test_secret_files_are_never_committed_nor_sent_to_the_builder(env_example: dict[str, str]) -> None:
    files = {value for name, value in env_example.items() if name.endswith("_FILE")}
    assert len(files) == 4
    assert {str(Path(file).parent) for file in files} == {"secrets"}
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "/secrets/" in ignored
    assert "/.env" in ignored
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    lines = [line for line in sent if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert not any("secrets" in line or ".env" in line for line in lines)


def test_only_the_gpu_server_asks_for_a_gpu(project: dict[str, Any]) -> None:
    asking = [name for name, service in project["services"].items() if "deploy" in service]
    assert asking == ["gpu"]
    (device,) = project["services"]["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": -1, "capabilities": ["gpu"]}


def test_the_gpu_server_has_the_limits_that_nccl_needs(project: dict[str, Any]) -> None:
    gpu = project["services"]["gpu"]
    assert int(gpu["shm_size"]) == 16 << 30
    assert gpu["ulimits"] == {"memlock": -1, "stack": 64 << 20, "nofile": 65536}


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_is_given_longer_to_stop_than_it_takes_to_drain(project: dict[str, Any], name: str) -> None:
    assert project["services"][name]["stop_grace_period"] == "1m30s"


def test_the_gpu_server_has_an_hour_to_load_before_it_counts_as_unhealthy(project: dict[str, Any]) -> None:
    check = project["services"]["gpu"]["healthcheck"]
    assert check["start_period"] == "1h0m0s"
    assert check["start_interval"] == "5s"
    assert check["test"] == ["CMD", "python", "/opt/stratoscope/healthcheck.py"]


def test_the_memory_limit_holds_the_ring_and_the_shared_memory(project: dict[str, Any]) -> None:
    gpu = project["services"]["gpu"]
    environment = gpu["environment"]
    per_gpu = 10 << 30
    needed = int(environment["STRATOSCOPE_RING_BYTES"]) + int(gpu["shm_size"])
    needed += per_gpu * int(environment["STRATOSCOPE_TENSOR_PARALLEL_SIZE"])
    assert int(gpu["mem_limit"]) >= needed


def test_both_servers_answer_to_the_name_that_prometheus_asks_for(project: dict[str, Any]) -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text(encoding="utf-8"))
    (names,) = [entry["names"] for entry in config["scrape_configs"][0]["dns_sd_configs"]]
    for name in SERVERS:
        assert project["services"][name]["networks"]["default"]["aliases"] == names
