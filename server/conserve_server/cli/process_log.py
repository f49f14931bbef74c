"""The log of a process that a subcommand runs: begun anew, and quoted when it fails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from conserve_server.core.errors import ConserveError


def begin_log(log: Path, argv: Sequence[str]) -> None:
    """An empty log but for the command line that is about to write to it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"$ {' '.join(argv)}\n")


def failed_with_log(what: str, log: Path) -> ConserveError:
    """An error that ends with the log's last lines."""
    from conserve_server.engines.engine_log import log_tail

    return ConserveError("\n".join([f"{what}; the end of {log}:", *log_tail(log)]))
