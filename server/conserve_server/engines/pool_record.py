"""The record of what `conserve up` runs, so that `conserve serve` with the same configuration finds it.

Two files in launcher.run_dir: `pool.lock`, locked by `conserve up` as long as it lives, even
if it is killed; `pool.json`, the engines, written once all of them are ready.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from conserve_server.core.config import Config
from conserve_server.core.errors import ConfigError
from conserve_server.engines.engine import EngineSpec, Role, pool_of

_LOCK_TRIES = 10
_LOCK_PAUSE_S = 0.05


@contextlib.contextmanager
def claimed(config: Config) -> Iterator[Path]:
    """The run directory as ours alone; its record goes with it. Raises ConfigError if it can't be."""
    run_dir = Path(config.launcher.run_dir)
    try:
        (run_dir / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (run_dir / "pool.lock").open("a")
    except OSError as error:
        raise ConfigError(f"launcher.run_dir: {run_dir} can't be written to: {error}") from error
    with lock:
        if not _lock(lock.fileno(), tries=_LOCK_TRIES):
            raise ConfigError(
                f"another conserve up runs its engines from {run_dir.absolute()}: stop it, or give this one "
                "a launcher.run_dir of its own"
            )
        record = _record_path(run_dir)
        record.unlink(missing_ok=True)
        try:
            yield run_dir
        finally:
            record.unlink(missing_ok=True)


def write_record(config: Config, engines: Sequence[EngineSpec], pids: Mapping[str, int]) -> None:
    """Write the record at once and whole. `pids`: each engine's process by its name."""
    document = {
        "pid": os.getpid(),
        "model": config.model,
        "engines": [
            {
                "name": e.name,
                "role": str(e.role),
                "url": e.url,
                "pid": pids.get(e.name),
                "gpus": list(e.gpus),
            }
            for e in engines
        ],
    }
    path = _record_path(Path(config.launcher.run_dir))
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=2) + "\n")
    part.replace(path)


def read_record(config: Config) -> tuple[EngineSpec, ...]:
    """The engines that `conserve up` runs for this configuration.

    Raises ConfigError, with the fix, if none runs, if they are not ready or serve another model.
    """
    run_dir = Path(config.launcher.run_dir)
    if not _is_claimed(run_dir):
        raise ConfigError(
            f"no engines run from {run_dir.absolute()}: start them with conserve up and the same "
            "configuration, from the same directory"
        )
    try:
        document = json.loads(_record_path(run_dir).read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"the engines in {run_dir.absolute()} are not ready: wait until conserve up says that they are"
        ) from None
    if document["model"] != config.model:
        raise ConfigError(
            f"the engines in {run_dir.absolute()} serve {document['model']}, the configuration says "
            f"{config.model}: use the configuration that conserve up was started with"
        )
    tiers = {role: iter(pool_of(config, role).tiers) for role in Role}
    return tuple(
        EngineSpec(e["name"], role, e["url"], tuple(e["gpus"]), next(tiers[role], None))
        for e in document["engines"]
        for role in (Role(e["role"]),)
    )


def _record_path(run_dir: Path) -> Path:
    return run_dir / "pool.json"


def _is_claimed(run_dir: Path) -> bool:
    try:
        with (run_dir / "pool.lock").open("a") as lock:
            return not _lock(lock.fileno(), tries=1)
    except OSError:
        return False


def _lock(descriptor: int, *, tries: int) -> bool:
    """Whether the lock is ours now. Several tries: a reader holds it for an instant while it looks."""
    for left in reversed(range(tries)):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if left:
            time.sleep(_LOCK_PAUSE_S)
    return False
