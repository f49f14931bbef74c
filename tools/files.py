#!/usr/bin/env python3
"""Print what each file is for, room by room, as its docstring says.

    python tools/files.py

Standard library only.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
FOLDERS = (
    "conserve_sdk",
    "integrations/conserve_integrations",
    "server/conserve_server",
    "server/conserve_vllm",
    "examples",
)


def main() -> int:
    """Exit status: 0, or 1 where a file says nothing, with its name on stderr."""
    try:
        print(file_list(PROJECT))
    except ValueError as error:
        print(f"files: {error}", file=sys.stderr)
        return 1
    return 0


def file_list(project: Path) -> str:
    """One Markdown section a room, one line a file. Raises ValueError for a file without a docstring."""
    files = [path for folder in FOLDERS for path in sorted((project / folder).rglob("*.py"))]
    rooms: dict[str, list[str]] = {}
    for path in files:
        room = path.parent.relative_to(project).as_posix()
        rooms.setdefault(room, []).append(f"- `{path.name}`: {first_line(path)}")
    return "\n\n".join(f"### {room}\n" + "\n".join(rooms[room]) for room in sorted(rooms, key=_order))


def first_line(path: Path) -> str:
    """What the file says it is for: the first line of its docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    if not docstring:
        raise ValueError(f"{path} has no docstring: let its first line say what the file is for")
    return docstring.splitlines()[0]


def _order(room: str) -> tuple[int, str]:
    """The rooms in the order of FOLDERS, each before those inside it."""
    return next(i for i, folder in enumerate(FOLDERS) if f"{room}/".startswith(f"{folder}/")), room


if __name__ == "__main__":
    sys.exit(main())
