"""The files under `deploy/` parse, and what the dashboard asks for is what the gateway serves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from conserve_server.telemetry import names
from conserve_server.telemetry.metrics import GatewayMetrics

DEPLOY = Path(__file__).parents[1] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "conserve.json"
_KINDS = ("_total", "_bucket", "_sum", "_count")


def targets() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return [target for panel in panels for target in panel["targets"]]


def served() -> set[str]:
    """Every name that the gateway's page can show a sample under."""
    families = list(text_string_to_metric_families(GatewayMetrics().page().decode()))
    return {family.name + kind for family in families for kind in ("", *_KINDS)}


def test_every_metric_of_the_dashboard_is_served() -> None:
    asked = {name for t in targets() for name in re.findall(r"\bconserve_[a-z_]+", t.get("expr", ""))}
    assert len(asked) > 8
    assert asked - served() == set()


def test_the_dashboards_trace_query_names_spans_that_are_written() -> None:
    (query,) = (target["query"] for target in targets() if "query" in target)
    known = {value for key, value in vars(names).items() if key.isupper()}
    asked = set(re.findall(r"span\.([\w.]+)", query)) | set(re.findall(r'"(conserve[\w.]+)"', query))
    assert asked - known == set()
    assert names.SPAN_TURN in asked


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_setting_file_is_yaml(path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    assert isinstance(yaml.safe_load(path.read_text()), dict)
