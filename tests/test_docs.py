"""The reference pages say what the code says, and their examples run."""

from __future__ import annotations

import ast
import asyncio
import itertools
import json
import os
import re
import shutil
import subprocess
import threading
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args, get_origin

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from conserve_sdk import protocol
from conserve_server.core.config import Config, parse_config
from conserve_server.core.errors import ConfigError
from conserve_server.engines.emulated import load_script
from conserve_server.engines.emulated.__main__ import parse_arguments
from conserve_server.engines.emulated.faults import FaultKind
from conserve_server.engines.engine import Role
from conserve_server.engines.vllm_command import Model, Slot, vllm_command
from conserve_server.scheduling.conversation import State
from conserve_server.serving.asked.identity import ID_HEADERS
from conserve_server.telemetry.energy_metrics import EnergyMetrics
from conserve_server.telemetry.metrics import GatewayMetrics
from conserve_server.telemetry.summary import ConversationSummary
from tests.gateway.conftest import MODEL, served

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SERVER = ROOT / "server" / "conserve_server"
ADDRESS, PAGE_MODEL = "http://127.0.0.1:8000", "smollm2-135m"
LIMIT_S = 60.0


def page(name: str) -> str:
    return (DOCS / name).read_text()


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the line of the page on which it begins."""

    language: str
    text: str
    line: int


def blocks(text: str, *languages: str) -> list[Block]:
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [
        Block(m[1], m[2], text.count("\n", 0, m.start(2)) + 1)
        for m in found
        if not languages or m[1] in languages
    ]


def rows(text: str) -> list[list[str]]:
    """The cells of every table's rows, heads left out."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def quoted(text: str) -> list[str]:
    """What stands between single backticks on one line."""
    return re.findall(r"`([^`\n]+)`", text)


# -- configuration.md ------------------------------------------------------------------------


def config_keys(model: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """Every key of the document by its full name, with its default as TOML would have it."""
    keys: dict[str, str] = {}
    for name, field in model.model_fields.items():
        part = next(
            (t for t in (field.annotation, *get_args(field.annotation)) if _is_model(t)),
            None,
        )
        if part is not None:
            named = "NAME." if get_origin(field.annotation) is dict else ""
            keys |= config_keys(part, f"{prefix}{name}.{named}")
        else:
            keys[prefix + name] = toml(field.get_default(call_default_factory=True))
    return keys


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def toml(value: object) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "unset"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{json.dumps(value)}`"


def test_every_configuration_key_is_in_the_page_with_its_default() -> None:
    told = {key: row[2] for row in rows(page("configuration.md")) for key in quoted(row[0])}
    assert told == config_keys(Config)


def test_the_configuration_page_names_no_key_that_does_not_exist() -> None:
    keys = set(config_keys(Config))
    parts = {key.rpartition(".")[0] for key in keys} | {"pools"}
    named = re.findall(
        r"`((?:gateway|scheduler|pools|tiers|launcher|energy)\.[\w.]+)`", page("configuration.md")
    )
    assert set(named) <= keys | parts


def test_the_example_configuration_can_be_used() -> None:
    example = blocks(page("configuration.md"), "toml")[0]
    assert parse_config(_toml(example)).is_local


def test_configuration_errors_are_printed_as_the_page_shows_them() -> None:
    shown = blocks(page("configuration.md"), "toml", "text")[1:]
    pairs = [(a, b) for a, b in itertools.pairwise(shown) if (a.language, b.language) == ("toml", "text")]
    assert len(pairs) == 4
    for document, printed in pairs:
        with pytest.raises(ConfigError) as raised:
            parse_config(_toml(document), source="conserve.toml")
        assert printed.text == f"conserve serve: {raised.value}\n"


def _toml(block: Block) -> dict[str, object]:
    return tomllib.loads(block.text)


# -- gateway.md ------------------------------------------------------------------------------


def error_codes() -> set[str]:
    """Every code that the gateway's side gives an error: `code="…"`, or an argument of `_failed`."""
    files = [p for p in SERVER.rglob("*.py") if "emulated" not in p.parts]
    calls = [n for p in files for n in ast.walk(ast.parse(p.read_text())) if isinstance(n, ast.Call)]
    named = [word.value for call in calls for word in call.keywords if word.arg == "code"]
    failed = [a for c in calls if _name(c.func) == "_failed" for a in c.args]
    literals = [v.value for v in (*named, *failed) if isinstance(v, ast.Constant)]
    return {text for text in literals if isinstance(text, str) and re.fullmatch(r"[a-z_]+", text)}


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def test_the_gateway_page_lists_exactly_the_codes_of_the_source() -> None:
    section = page("gateway.md").partition("\n## Errors")[2].partition("\n## ")[0]
    assert {row[0].strip("`") for row in rows(section)} == error_codes()


def test_the_gateway_page_names_every_header() -> None:
    receipt = {value for name, value in vars(protocol).items() if name.startswith("RECEIPT_")}
    assert {"x-conserve-final", *receipt, *ID_HEADERS} <= set(quoted(page("gateway.md")))
    assert set(re.findall(r"x-conserve-[a-z-]+", page("gateway.md"))) <= {
        v for v in vars(protocol).values() if isinstance(v, str)
    }


@pytest.mark.parametrize(
    ("title", "document"),
    [
        ("| field of the conversation", protocol.ConversationReport),
        ("| field of a turn", protocol.TurnReport),
        ("| field of an energy", protocol.EnergyReport),
        ("| field of a tool call", protocol.ToolReport),
        ("| field of an event", protocol.ToolEvent),
        ("| field of an update", protocol.Update),
        ("| field of a changed conversation", protocol.ConversationUpdate),
        ("| field of a running turn", protocol.RunningTurn),
        ("| field of an engine", protocol.EngineReport),
    ],
)
def test_the_gateway_page_lists_exactly_the_fields_of_a_document(title: str, document: type) -> None:
    table = page("gateway.md").partition(title)[2].partition("\n\n")[0]
    told = {name for row in rows(table) for name in quoted(row[0])}
    assert told - {"object"} == {field.name for field in fields(document)}


def test_the_report_that_the_gateway_page_shows_has_the_fields_of_a_report() -> None:
    shown = [json.loads(block.text) for block in blocks(page("gateway.md"), "json")]
    report = next(document for document in shown if document.get("object") == "conversation")
    assert protocol.ConversationReport.from_json(report).to_json().keys() == report.keys()


def test_the_gateway_page_names_every_state_of_a_conversation() -> None:
    (cell,) = [row[1] for row in rows(page("gateway.md")) if row[0] == "`state`"]
    assert set(quoted(cell)) == {*State, "expired"}


def metrics() -> dict[str, tuple[str, list[str]]]:
    """Each metric's type and labels, from a page on which everything was counted once."""
    found = GatewayMetrics()
    found.turn_ended(protocol.TurnReport(1, protocol.Outcome.COMPLETED, wait_s=1.0, ttft_s=1.0))
    found.conversation_ended(ConversationSummary(1, 1, 1, 1, 1.0, 1.0, 1.0, 1.0, 1, 1, 1.0))
    found.set_engine("e", "decode", is_up=True)
    found.set_decoder("e", reserved=1, budget=1, overcommitted=1)
    found.rebound(protocol.RebindCause.ENGINE_LOST)
    found.set_queues(waiting=1, by_state={"active": 1})
    found.set_kv_plugin("e", has_it=True)
    found.kv_signals("e", "release", "sent", 1)
    found.kv_fetched("e", 1)
    found.refused("body_too_large")
    found.book_failed("metrics")
    found.retried("decode")
    found.background_failed("expiry")
    count_energy(found.energy)
    families = text_string_to_metric_families(found.page().decode())
    told = {}
    for family in families:
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        told[name] = (family.type, sorted(labels))
    return {name: each for name, each in told.items() if not name.endswith("_created")}


def count_energy(metrics: EnergyMetrics) -> None:
    metrics.set_device("0", kind="gpu", label="H100", source="m", how="counter", metered_j=1.0, is_up=True)
    metrics.set_limit("0", 700.0)
    metrics.set_charged("decode", model="m", pool="decode", tier="none", source="m", joules=1.0)
    metrics.set_unallocated("0", idle_j=1.0, dynamic_j=1.0, dropped_s=1.0)


def test_the_gateway_page_lists_exactly_the_metrics_with_their_labels() -> None:
    section = page("gateway.md").partition("\n## Metrics")[2]
    told = {row[0].strip("`"): (row[1], sorted(quoted(row[2]))) for row in rows(section)}
    assert told == metrics()


# -- engines.md ------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("role", list(Role))
def test_the_engines_page_names_every_flag_and_variable_of_a_local_engine(role: Role, device: str) -> None:
    pools = {"prefill": {"count": 1}, "decode": {"count": 1}}
    config = parse_config({"pools": pools, "launcher": {"max_model_len": 2048}})
    slot, model = Slot(role, 0, 8100, 5600, "0", "0,1"), Model("/model", is_folder=True)
    command = vllm_command(config, slot, model, python="python", device=device, has_plugin=True)
    flags = {word for word in command.argv if word.startswith("--")}
    text = page("engines.md")
    assert {word for word in (*flags, *command.env) if word not in text} == set()
    assert json.loads(command.argv[command.argv.index("--kv-transfer-config") + 1])["kv_role"] in text


def test_the_engines_page_lists_exactly_the_flags_of_the_emulated_engine_with_their_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    section = page("engines.md").partition("## The emulated engine")[2].partition("**Scripts**")[0]
    told = {
        flag: default
        for row in rows(section)
        for flag, default in zip(quoted(row[0]), quoted(row[1]) or ["none"], strict=True)
    }
    config = parse_arguments([])
    kept = {f"--{f.name.replace('_', '-')}": getattr(config, f.name) for f in fields(config)}
    kept |= {"--script": "none", "--speed": 1}
    assert told == {flag: str(kept[flag]) for flag in told}
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    helped = set(re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, re.MULTILINE))
    assert told.keys() == helped


def test_the_script_of_the_engines_page_can_be_loaded(tmp_path: Path) -> None:
    (script,) = blocks(page("engines.md"), "toml")
    (tmp_path / "answers.toml").write_text(script.text)
    assert [rule.match for rule in load_script(tmp_path / "answers.toml")] == ["ferry", 2, None]


def test_the_engines_page_lists_exactly_the_faults() -> None:
    section = page("engines.md").partition("| kind | effect |")[2]
    assert {row[0].strip("`") for row in rows(section)} == set(get_args(FaultKind))


# -- examples that run -----------------------------------------------------------------------


@contextmanager
def gateway_in_thread() -> Iterator[str]:
    """The URL of a gateway over emulated engines, in an event loop of its own."""
    started: threading.Event = threading.Event()
    running: list[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        stop = asyncio.Event()
        async with served() as gateway:
            running.append((gateway.url, asyncio.get_running_loop(), stop))
            started.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(LIMIT_S), "the gateway did not start"
    url, loop, stop = running[0]
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(LIMIT_S)


def run(program: list[str], env: Mapping[str, str], limit_s: float = LIMIT_S) -> str:
    """What the program printed; the test fails with its errors where it does."""
    done = subprocess.run(
        program, env={**os.environ, **env}, capture_output=True, text=True, timeout=limit_s, check=False
    )
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


def python_alone(text: str) -> str:
    """The page's Python blocks as one program, each line where it stands in the page."""
    lines = [""] * text.count("\n")
    for block in blocks(text, "python"):
        lines[block.line - 1 : block.line - 1 + block.text.count("\n")] = block.text.splitlines()
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_requests_of_the_gateway_page_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSERVE_ADMIN_KEY", "administrator")
    requests = [block.text for block in blocks(page("gateway.md"), "sh") if block.text.startswith("curl ")]
    assert len(requests) >= 8
    with gateway_in_thread() as url:
        for request in requests:
            command = request.replace("curl -s", "curl --fail -s").replace(ADDRESS, url)
            if "/v1/events" in command:  # it has no end: its first event is enough
                command = f"{command.strip()} | grep --quiet --max-count 1 '^event: '"
            run(["bash", "-c", command.replace(PAGE_MODEL, MODEL)], {})
