"""A workload from a file of any known format: by its name, or told by its first line."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

from conserve_server.core.errors import TraceError

from ..workload import Arrival, ConversationShape, Workload
from .artifact import artifact_conversations
from .dynamo import read_dynamo
from .mooncake import read_mooncake
from .own import read_own
from .reading import lines_of
from .sessions import coding_sessions
from .weka import read_weka


def _at_once(name: str, conversations: list[ConversationShape]) -> Workload:
    return Workload(name, tuple(Arrival(0.0, each) for each in conversations))


READERS: dict[str, Callable[[pathlib.Path], Workload]] = {
    "conserve": read_own,
    "mooncake": read_mooncake,
    "weka": read_weka,
    "dynamo": read_dynamo,
    "artifact": lambda path: _at_once(path.name, artifact_conversations(path)),
    "sessions": lambda path: _at_once(path.name, coding_sessions(path)),
}
"""Each format's reader. Formats that know no arrival times have all conversations arrive at 0."""


def load_workload(path: pathlib.Path, trace_format: str | None = None) -> Workload:
    """The workload in `path`. Raises TraceError, with the formats there are, where none fits."""
    if not path.exists():
        raise TraceError(f"there is no {path}")
    name = trace_format or _told_format(path)
    if name not in READERS:
        raise TraceError(f"{path}: the format must be one of {', '.join(READERS)}, got {name!r}")
    workload = READERS[name](path)
    if not workload.arrivals:
        raise TraceError(f"{path}: there is no conversation in it")
    return workload


def _told_format(path: pathlib.Path) -> str:
    if path.is_dir():
        return "weka"
    line = next((text for _, text in lines_of(path)), "")
    if line.startswith("conv_id,"):
        return "artifact"
    keys = _keys(line)
    for name, told_by in (
        ("conserve", "format"),
        ("mooncake", "input_length"),
        ("sessions", "session"),
        ("weka", "block_size"),
        ("dynamo", "event"),
        ("dynamo", "event_type"),
    ):
        if told_by in keys:
            return name
    # A document that is written over many lines: the only format that is one document is WEKA's.
    if path.name.endswith((".json", ".json.gz")):
        return "weka"
    raise TraceError(f"{path}: can't tell its format; name one: {', '.join(READERS)}")


def _keys(line: str) -> set[str]:
    try:
        document = json.loads(line)
    except ValueError:
        return set()
    return set(document) if isinstance(document, dict) else set()
