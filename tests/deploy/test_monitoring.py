"""Prometheus asks with a key that is in a file, and the dashboard asks for metrics that exist."""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import parser

from stratoscope_server.engines.protocol import EngineStatus
from stratoscope_server.engines.sizes import Sizes
from stratoscope_server.gate import Gate
from stratoscope_server.metrics import Metrics
from stratoscope_server.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "stratoscope.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

OF_PROMETHEUS_ITSELF = {"up"}
SUFFIXES = {"gauge": [""], "counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
LABELS_OF_PROMETHEUS = {"job", "instance", "le"}


def metrics() -> Metrics:
    sizes = Sizes().read()
    status = EngineStatus(ring_bytes=1, pass_prompts=sizes, pass_tokens=sizes)
    return Metrics(lambda: status, lambda: "ready", Gate(Settings()))


def exposed() -> dict[str, str]:
    families = parser.text_string_to_metric_families(metrics().render().decode())
    # When each counter was made is exposed beside it.
    return {family.name: family.type for family in families if not family.name.endswith("_created")}


@cache
def kinds() -> dict[str, str]:
    """Every metric family that the server exposes, and its kind."""
    return exposed()


@cache
def series() -> dict[str, str]:
    """Every name that a query may ask for, and the family it belongs to."""
    named = {f"{family}{suffix}": family for family, kind in kinds().items() for suffix in SUFFIXES.get(kind, [])}
    return named | {name: name for name in OF_PROMETHEUS_ITSELF}


def expressions() -> list[str]:
    return [target["expr"] for panel in PANELS for target in panel["targets"]]


def parse(expression: str) -> Any:
    # Grafana puts a range in this place.
    return promql_parser.parse(expression.replace("$__rate_interval", "1m"))


def parts(node: Any) -> Iterator[Any]:
    """Every node of a parsed query."""
    yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        child = getattr(node, name, None)
        if child is not None:
            yield from parts(child)
    for argument in getattr(node, "args", None) or []:
        yield from parts(argument)


def selectors(expression: str) -> list[Any]:
    return [part for part in parts(parse(expression)) if isinstance(part, promql_parser.VectorSelector)]


def metric_names(expression: str) -> list[str]:
    return [str(selector.name) for selector in selectors(expression)]


def label_names(metric: str) -> set[str]:
    """Labels of a family of the server, as its text does not tell those of one that has not counted yet."""
    collectors = vars(metrics()).values()
    own = {name for one in collectors if getattr(one, "_name", None) == metric for name in one._labelnames}
    families = parser.text_string_to_metric_families(metrics().render().decode())
    told = {name for family in families if family.name == metric for sample in family.samples for name in sample.labels}
    return own | told | LABELS_OF_PROMETHEUS


def test_the_server_exposes_the_metrics_that_the_readers_below_find() -> None:
    assert {"stratoscope_requests_total", "stratoscope_first_byte_seconds_bucket", "stratoscope_open_streams"} <= set(
        series()
    )
    assert label_names("stratoscope_requests") == {"route", "status", *LABELS_OF_PROMETHEUS}


@pytest.mark.parametrize("expression", expressions())
def test_a_query_of_the_dashboard_asks_for_a_metric_that_exists(expression: str) -> None:
    names = metric_names(expression)
    assert names
    assert set(names) <= set(series())
    # No name is overlooked: whatever looks like one of ours in the text was found in the parsed query.
    assert set(re.findall(r"stratoscope_\w+", expression)) <= set(names)


@pytest.mark.parametrize("expression", expressions())
def test_a_query_of_the_dashboard_uses_labels_that_the_metric_has(expression: str) -> None:
    for selector in selectors(expression):
        labels = label_names(series()[str(selector.name)])
        assert {matcher.name for matcher in selector.matchers.matchers} <= labels
        by = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(", ")}
        assert by <= labels


@pytest.mark.parametrize("expression", expressions())
def test_a_counter_is_asked_for_its_rate_and_a_gauge_for_its_value(expression: str) -> None:
    for name in metric_names(expression):
        kind = kinds().get(series()[name])
        counted = re.search(rf"\b(rate|increase)\({name}\b", expression) is not None
        assert counted == (kind in ("counter", "histogram"))


def test_every_metric_of_the_server_is_on_the_dashboard() -> None:
    shown = {series()[name] for expression in expressions() for name in metric_names(expression)}
    assert shown == {*kinds(), *OF_PROMETHEUS_ITSELF}


def test_every_panel_is_in_its_place_and_asks_the_data_source_that_is_provisioned() -> None:
    (source,) = yaml.safe_load((DEPLOY / "grafana" / "datasource.yml").read_text(encoding="utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert all(panel["datasource"] == {"type": "prometheus", "uid": source["uid"]} for panel in PANELS)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_the_dashboard_lies_where_grafana_looks_for_it(project: dict[str, Any]) -> None:
    grafana = project["services"]["grafana"]
    mounted = {mount["source"]: mount["target"] for mount in grafana["volumes"]}
    (provider,) = yaml.safe_load((DEPLOY / "grafana" / "dashboards.yml").read_text(encoding="utf-8"))["providers"]
    path = mounted[str(DEPLOY / "grafana" / "stratoscope.json")]
    assert Path(path).parent == Path(provider["options"]["path"])
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == path


def test_prometheus_asks_with_the_key_of_its_secret_file(project: dict[str, Any]) -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    (secret,) = project["services"]["prometheus"]["secrets"]
    assert job["authorization"] == {"credentials_file": secret["target"]}
    assert job["metrics_path"] == "/metrics"
    assert job["dns_sd_configs"][0]["port"] == project["services"]["gpu"]["ports"][0]["target"]
    mounted = {mount["source"]: mount["target"] for mount in project["services"]["prometheus"]["volumes"]}
    file = mounted[str(DEPLOY / "prometheus.yml")]
    assert f"--config.file={file}" in project["services"]["prometheus"]["command"]
