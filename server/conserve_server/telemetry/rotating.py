"""A text file of bounded size: spans are written by default, so they must not fill a disk."""

from __future__ import annotations

import io
import os
import pathlib
from typing import BinaryIO

DEFAULT_LIMIT_BYTES = 64 * 1024 * 1024


class RotatingFile(io.TextIOBase):
    """Appends to `path`; past `limit_bytes` the file becomes `{stem}.1{suffix}` and a new one starts.

    At most two files of about `limit_bytes` exist, so the last `limit_bytes` can always be
    read. Every `write` stays whole: a line is never split over two files.
    """

    def __init__(self, path: pathlib.Path, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._file = _opened(path)

    def write(self, text: str) -> int:
        data = text.encode()
        if self._file.tell() and self._file.tell() + len(data) > self._limit_bytes:
            self._rotate()
        self._file.write(data)
        return len(text)

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        super().close()
        self._file.close()

    def _rotate(self) -> None:
        full = self._file
        self._path.replace(self._path.with_suffix(f".1{self._path.suffix}"))
        self._file = _opened(self._path)
        full.close()


def _opened(path: pathlib.Path) -> BinaryIO:
    """To append to; a new file is its owner's alone, as spans tell whose conversations ran when."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
