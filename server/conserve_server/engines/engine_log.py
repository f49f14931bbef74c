"""The end of an engine's log, for people."""

from __future__ import annotations

import re
from pathlib import Path

_TAIL_BYTES = 16 * 1024
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def log_size(path: Path) -> int:
    """Bytes in the log now; 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def log_tail(path: Path, *, since: int = 0, lines: int = 20) -> list[str]:
    """The log's last `lines` lines that are not empty, none from before byte `since`."""
    try:
        with path.open("rb") as log:
            log.seek(max(since, log_size(path) - _TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    plain = (_COLOUR.sub("", line).rstrip() for line in re.split(r"[\r\n]+", text))
    return [line for line in plain if line][-lines:]
