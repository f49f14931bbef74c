"""The table of fields against vLLM's own request models: a field that nobody has decided about fails here."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from conserve_server.engines.fields import DIRECTING, PASSED, XARGS, Handling
from conserve_server.engines.wire import API_OF, TRANSFER_FIELDS
from tools.vllm_fields import MODELS

ROOT = Path(__file__).parents[2]
KNOWN: dict[str, dict[str, list[str]]] = json.loads((ROOT / "tests/engines/vllm_fields.json").read_text())
CASES = [(version, route) for version, routes in KNOWN.items() for route in routes]
VLLM_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
PRINT_INSTALLED = """
import json, vllm
from importlib import import_module
from sys import argv
found = {}
for route, (file, *models) in json.loads(argv[1]).items():
    module = import_module("vllm.entrypoints." + file.removesuffix(".py").replace("/", "."))
    found[route] = sorted({name for model in models for name in getattr(module, model).model_fields})
print(json.dumps({"version": vllm.__version__, "routes": found}))
"""


@pytest.mark.parametrize(("version", "route"), CASES)
def test_every_field_of_vllms_own_models_is_decided_about(version: str, route: str) -> None:
    undecided = set(KNOWN[version][route]) - PASSED[route] - DIRECTING.keys()
    assert not undecided, f"say in engines/fields.py what becomes of {sorted(undecided)}"


def test_three_versions_of_vllm_are_looked_at() -> None:
    assert [version.rpartition(".")[0] for version in KNOWN] == ["0.31", "0.32", "0.33"]


@pytest.mark.parametrize("route", PASSED)
def test_a_field_that_directs_the_engine_never_passes_by_itself(route: str) -> None:
    assert PASSED[route].isdisjoint(DIRECTING)


def test_transfer_parameters_direct_the_engine_and_are_no_extra_arguments() -> None:
    assert DIRECTING.keys() >= TRANSFER_FIELDS
    assert XARGS.isdisjoint(DIRECTING)


def test_every_route_of_turns_is_in_the_table() -> None:
    assert PASSED.keys() >= API_OF.keys()
    assert PASSED.keys() == KNOWN["0.32.0"].keys()


def test_the_page_tells_what_becomes_of_each_field_that_directs_the_engine() -> None:
    text = (ROOT / "docs" / "gateway.md").read_text()
    section = text.partition("#### Fields")[2].partition("\n### ")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| (\w+)[^|]*\|", section, re.MULTILINE))
    words = {
        Handling.DROPPED: "dropped",
        Handling.REPLACED: "replaced",
        Handling.ALLOWED: "dropped",
        Handling.FILTERED: "filtered",
    }
    assert told == {name: words[handling] for name, handling in DIRECTING.items()}


@pytest.mark.real
def test_the_list_is_what_the_installed_vllm_says() -> None:
    installed = subprocess.run(
        [VLLM_PYTHON, "-c", PRINT_INSTALLED, json.dumps(MODELS)],
        capture_output=True,
        check=True,
        timeout=300,
    )
    found: dict[str, Any] = json.loads(installed.stdout.splitlines()[-1])
    assert found["routes"] == KNOWN[found["version"].partition("+")[0]]
