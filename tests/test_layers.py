"""Imports point one way: the rooms of ARCHITECTURE.md, read from the source with `ast`.

examples → integrations → conserve_sdk
cli → gateway → serving | simulation → scheduling | engines | energy | telemetry → core
core → conserve_sdk.protocol
"""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = {
    "conserve_sdk": ROOT / "conserve_sdk",
    "conserve_server": ROOT / "server" / "conserve_server",
    "conserve_vllm": ROOT / "server" / "conserve_vllm",
    "conserve_integrations": ROOT / "integrations" / "conserve_integrations",
    "examples": ROOT / "examples",
}
PROTOCOL = "conserve_sdk.protocol"
CORE = "conserve_server.core"
MIDDLE = tuple(f"conserve_server.{room}" for room in ("scheduling", "engines", "energy", "telemetry"))
SERVING = "conserve_server.serving"

# What a module may import of ours, besides its own room. The longest prefix of its name decides.
ALLOWED: dict[str, tuple[str, ...]] = {
    PROTOCOL: (),
    "conserve_sdk": (),
    "conserve_integrations": ("conserve_sdk",),
    "examples": ("conserve_integrations", "conserve_sdk"),
    "conserve_vllm": (),
    "conserve_server": (PROTOCOL,),
    CORE: (PROTOCOL,),
    **dict.fromkeys(MIDDLE, (CORE, PROTOCOL)),
    SERVING: (*MIDDLE, CORE, PROTOCOL),
    "conserve_server.gateway": (SERVING, *MIDDLE, CORE, PROTOCOL),
    # Chunks are simulated with the very rule that vLLM is told.
    "conserve_server.simulation": (*MIDDLE, CORE, PROTOCOL, "conserve_vllm.chunk_rule"),
    # One distribution, one version: `conserve --version` prints the SDK's.
    "conserve_server.cli": ("conserve_server", PROTOCOL, "conserve_sdk._version"),
}
SERVER_DEPENDENCIES = frozenset(
    {"aiohttp", "httptools", "msgspec", "prometheus_client", "psutil", "pydantic", "starlette", "uvicorn"}
    | {"uvloop"}
)


HTTP_SERVERS = frozenset({"httptools", "starlette", "uvicorn"})
"""What `serving` knows nothing of."""


def is_within(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def room_of(module: str) -> str | None:
    """The longest prefix of `module` that has a rule; None for what is not ours."""
    return max((room for room in ALLOWED if is_within(module, room)), key=len, default=None)


def imports(module: str, tree: ast.AST, *, is_package: bool = False) -> Iterator[str]:
    """Every module that `tree` imports, wherever in it: also in functions and for type checking."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(module, node, is_package=is_package)
            # `from room import name`: the name may be a module, so it counts in full.
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _is_import_call(node.func) and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield name.value


def _base(module: str, node: ast.ImportFrom, *, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    kept = parts[: len(parts) - node.level + is_package]
    return ".".join([*kept, node.module] if node.module else kept)


def _is_import_call(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)
    return name in ("import_module", "__import__")


def offences(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """The imports in `source` that its room may not make."""
    room = room_of(module)
    assert room is not None, f"{module} is in no room"
    found = []
    for imported in imports(module, ast.parse(source), is_package=is_package):
        if imported.split(".")[0] in SERVER_DEPENDENCIES and is_within(module, "conserve_sdk"):
            found.append(f"{module} imports {imported}, a dependency of the server")
        elif imported.split(".")[0] in HTTP_SERVERS and is_within(module, SERVING):
            found.append(f"{module} imports {imported}, and HTTP is the gateway's")
        elif room_of(imported) is not None and not any(
            is_within(imported, each) for each in (room, *ALLOWED[room])
        ):
            found.append(f"{module} imports {imported}")
    return found


def modules() -> Iterator[tuple[str, pathlib.Path]]:
    for name, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join([name, *(part for part in parts if part != "__init__")]), path


def test_no_module_imports_upward_or_sideways() -> None:
    found = [
        offence
        for module, path in modules()
        for offence in offences(module, path.read_text(), is_package=path.name == "__init__.py")
    ]
    assert found == []


def test_the_rooms_are_there_to_be_read() -> None:
    names = {name for name, _ in modules()}
    assert {PROTOCOL, "conserve_server.core.config", "conserve_server.telemetry.names"} <= names


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("conserve_sdk._wrap", "import conserve_server"),
        ("conserve_sdk._wrap", "def late():\n    from conserve_server.core import clock"),
        ("conserve_sdk._wrap", "import conserve_integrations.langgraph"),
        ("conserve_sdk._wrap", "def late():\n    import pydantic"),
        ("conserve_sdk.protocol", "from conserve_sdk import _wrap"),
        ("conserve_integrations.langgraph", "from conserve_server.core import clock"),
        ("conserve_server.core.turn", "from conserve_server.scheduling.policy import Policy"),
        ("conserve_server.core.turn", "import conserve_sdk"),
        ("conserve_server.core.turn", "from conserve_sdk import _wrap"),
        ("conserve_server.scheduling.policy", "from conserve_server.engines import engine"),
        ("conserve_server.scheduling.policy", "from conserve_server import engines"),
        ("conserve_server.scheduling.policy", "from ..telemetry import names"),
        (
            "conserve_server.telemetry.spans",
            "import importlib\nimportlib.import_module('conserve_server.energy')",
        ),
        (
            "conserve_server.engines.vllm",
            "if TYPE_CHECKING:\n    from conserve_server.serving.turns.turns import Turn",
        ),
        ("conserve_server.serving.turns.turns", "from conserve_server.simulation import simulator"),
        ("conserve_server.serving.turns.turns", "from conserve_server.cli import main"),
        ("conserve_server.serving.turns.turns", "from conserve_server.gateway.http import reply"),
        ("conserve_server.serving.turns.turns", "from starlette.types import Send"),
        ("conserve_server.cli.demo", "from conserve_sdk import wrap"),
        ("conserve_vllm.plugin", "from conserve_sdk.protocol import AGENT"),
    ],
)
def test_an_import_that_points_the_wrong_way_is_caught(module: str, source: str) -> None:
    assert len(offences(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("conserve_sdk._wrap", "from conserve_sdk import protocol\nfrom . import _errors\nimport httpx2"),
        ("conserve_integrations.langgraph", "import conserve_sdk\nimport langgraph"),
        ("conserve_server.core.turn", "from conserve_sdk.protocol import Path\nfrom .clock import Clock"),
        (
            "conserve_server.engines.vllm",
            "from conserve_server.core.errors import EngineFailed\nimport aiohttp",
        ),
        ("conserve_server.serving.turns.turns", "from conserve_server.scheduling import policy"),
        (
            "conserve_server.gateway.app",
            "from conserve_server.gateway.routes import turns\nimport conserve_server.energy",
        ),
        ("conserve_server.cli.trace", "from conserve_server.telemetry import render"),
    ],
)
def test_an_import_that_points_down_is_allowed(module: str, source: str) -> None:
    assert offences(module, source) == []


@pytest.mark.parametrize(
    "module",
    [
        "conserve_sdk",
        "conserve_server.cli.trace",
        "conserve_server.telemetry.provider",
        "conserve_server.telemetry.render",
        "conserve_server.telemetry.timeline",
    ],
)
def test_what_works_without_the_server_extra_does_not_load_it(module: str) -> None:
    program = f"import {module}, sys; print(*sorted({{n.split('.')[0] for n in sys.modules}}))"
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    # OpenTelemetry looks for psutil by itself and does without.
    assert (SERVER_DEPENDENCIES - {"psutil"}).isdisjoint(answer.stdout.split())
