#!/usr/bin/env python3
"""Print what each file is for, room by room, as its docstring says; keep ARCHITECTURE.md's list so.

    python tools/architecture.py            print the list
    python tools/architecture.py --write    put it into ARCHITECTURE.md, between the two markers

Standard library only.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PAGE = PROJECT / "ARCHITECTURE.md"
FOLDERS = (
    "conserve_sdk",
    "integrations/conserve_integrations",
    "server/conserve_server",
    "server/conserve_vllm",
    "examples",
)
START, END = "<!-- files -->", "<!-- /files -->"


class StaleError(Exception):
    """The list can't be made or put in its place; the message names the file and the fix."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="architecture", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"rewrite the list in {PAGE.name}")
    args = parser.parse_args(arguments)
    try:
        if args.write:
            PAGE.write_text(with_list(PAGE.read_text(), file_list(PROJECT)))
        else:
            print(file_list(PROJECT))
    except StaleError as error:
        print(f"architecture: {error}", file=sys.stderr)
        return 1
    return 0


def file_list(project: Path) -> str:
    """One Markdown section a room, one line a file. Raises StaleError for a file without a docstring."""
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
        raise StaleError(f"{path} has no docstring: let its first line say what the file is for")
    return docstring.splitlines()[0]


def with_list(page: str, listed: str) -> str:
    """The page with `listed` between its markers. Raises StaleError where it has no pair of them."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise StaleError(f"{PAGE.name} needs {START} and after it {END}, each on a line of its own")
    return f"{before}{START}\n{listed}\n{END}{after}"


def _order(room: str) -> tuple[int, str]:
    """The rooms in the order of FOLDERS, each before those inside it."""
    return next(i for i, folder in enumerate(FOLDERS) if f"{room}/".startswith(f"{folder}/")), room


if __name__ == "__main__":
    sys.exit(main())
