"""Spans as they are written: a trace folder read on from where the last look ended."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from conserve_server.telemetry.spans_file import Span, spans_in

CHUNK_BYTES = 1024 * 1024


class SpansTail:
    """The spans of a folder's `*.jsonl` files, each given once: all that name a conversation, or one's.

    A file that was rotated is known by its inode, so that nothing is read twice or missed. A
    line without its end stays for the next look.
    """

    def __init__(self, folder: pathlib.Path, *, conversation_id: str | None = None) -> None:
        self._folder = folder
        self._conversation_id = conversation_id
        self._read_bytes: dict[int, int] = {}

    def look(self) -> Iterator[Span]:
        """What was written since the last look; everything, at the first. Each file is read in pieces."""
        for path in sorted(self._folder.glob("*.jsonl")):
            try:
                inode = path.stat().st_ino
                yield from spans_in(self._new_lines(path, inode), self._conversation_id)
            except FileNotFoundError:
                continue  # rotated away between the listing and the look

    def _new_lines(self, path: pathlib.Path, inode: int) -> Iterator[str]:
        with path.open("rb") as file:
            file.seek(self._read_bytes.get(inode, 0))
            partial = b""
            while chunk := file.read(CHUNK_BYTES):
                whole, newline, partial = (partial + chunk).rpartition(b"\n")
                if newline:
                    yield from whole.decode(errors="replace").splitlines()
                    self._read_bytes[inode] = file.tell() - len(partial)
