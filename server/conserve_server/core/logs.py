"""Log lines that stay one line each, whatever engines and clients write into them."""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import Final

from conserve_server.core.texts import cut

_FORMAT: Final = "%(asctime)s %(name)s %(message)s"


def shown(text: str) -> str:
    """The text on one line: what can't be printed (line breaks, escapes, marks of direction) is written as
    Python writes it. Cut to the length that any text is kept in.
    """
    text = cut(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class OneLine(logging.Formatter):
    """Writes each record as a line; lines of a traceback are marked, so that none looks like a record."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = shown(record.message)
        return super().formatMessage(record)

    def formatException(  # noqa: N802 - logging's name
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        return "\n".join(f"  | {shown(line)}" for line in super().formatException(ei).splitlines())


def log_to_stderr() -> None:
    """Have this process's records on standard error, from INFO up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
