"""Reading trace files, compressed or not, with errors that name file, line and field."""

from __future__ import annotations

import csv
import gzip
import os
import pathlib
from collections.abc import Iterator
from typing import IO, Annotated, TypeVar

import msgspec

from conserve_server.core.errors import TraceError

T = TypeVar("T")
Tokens = Annotated[int, msgspec.Meta(ge=0)]
"""A number of tokens, as msgspec checks it."""
Seconds = Annotated[float, msgspec.Meta(ge=0)]
_PROJECT = pathlib.Path(__file__).resolve().parents[4]


def data_file(name: str) -> pathlib.Path:
    """A public trace in the folder `$CONSERVE_DATA`, or in the default one beside the project.

    Raises TraceError where it isn't there; docs/workloads.md says where each comes from.
    """
    chosen = os.environ.get("CONSERVE_DATA")
    path = (pathlib.Path(chosen) if chosen else _PROJECT.parent / "shared" / "data") / name
    if not path.is_file():
        raise TraceError(
            f"there is no {path}: set CONSERVE_DATA to the folder that has it (docs/workloads.md)"
        )
    return path


def open_text(path: pathlib.Path) -> IO[str]:
    """The file as text, unpacked where its name ends in `.gz`. Raises TraceError where it can't be opened."""
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8")
        return path.open(encoding="utf-8")
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from error


def lines_of(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """The file's lines that hold something, with their numbers from 1."""
    with open_text(path) as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise TraceError(f"{path}: {error}") from error


def json_lines(path: pathlib.Path, kind: type[T]) -> Iterator[tuple[int, T]]:
    """One document a line, checked; a bad one raises TraceError with the line and the field."""
    decoder = msgspec.json.Decoder(kind)
    for number, line in lines_of(path):
        yield number, decoded(decoder, line, f"{path}:{number}")


def json_document(path: pathlib.Path, kind: type[T]) -> T:
    """The one document that the file holds."""
    with open_text(path) as file:
        return decoded(msgspec.json.Decoder(kind), file.read(), str(path))


def decoded(decoder: msgspec.json.Decoder[T], text: str, where: str) -> T:
    try:
        return decoder.decode(text)
    except msgspec.DecodeError as error:
        raise TraceError(f"{where}: {error}") from error


def csv_rows(path: pathlib.Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, float]]]:
    """Each row's numbers in `columns`, with its line; other columns are left out."""
    with open_text(path) as file:
        rows = csv.DictReader(file)
        missing = [name for name in columns if name not in (rows.fieldnames or ())]
        if missing:
            raise TraceError(f"{path}:1: no column {', '.join(missing)}; it has {rows.fieldnames}")
        for row in rows:
            yield rows.line_num, {name: _number(path, rows.line_num, name, row[name]) for name in columns}


def _number(path: pathlib.Path, line: int, column: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        raise TraceError(f"{path}:{line}: {column} must be a number, got {text!r}") from None
    if value < 0:
        raise TraceError(f"{path}:{line}: {column} must not be negative, got {text}")
    return value
