"""The books of turns: who keeps account of what turns do, and how all of them are told of it.

A book knows no HTTP and does no I/O. It hears of each turn's begin and end once, whatever else fails:
another book's error, its own, or the turn's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

from conserve_sdk.protocol import Outcome, TurnReport
from conserve_server.engines.engine import PrefillAnswer
from conserve_server.serving.driving.telling import BookErrors, Event, Told
from conserve_server.serving.turns.live import LiveTurn


class Ended:
    """How a turn ended. The report is made when the first book asks for it."""

    def __init__(self, live: LiveTurn, outcome: Outcome, now_s: float) -> None:
        self._live = live
        self.outcome = outcome
        self.now_s = now_s
        self._report: TurnReport | None = None

    @property
    def message(self) -> str | None:
        """What went wrong, for people."""
        return str(self._live.error) if self._live.error is not None else self._live.refused

    @property
    def error_type(self) -> str | None:
        """What went wrong, for programs."""
        if self._live.error is not None:
            return self._live.error.code
        return "engine_refused" if self._live.refused else None

    @property
    def report(self) -> TurnReport:
        """The turn as its conversation's report tells it."""
        if self._report is None:
            self._report = self._live.report(self.outcome, self.now_s, self.message)
        return self._report


class TurnBook:
    """One account of turns. What it does not care for it need not define. Times are monotonic seconds."""

    name: ClassVar[str]
    """In the log and in `conserve_book_errors_total{book}`."""

    def begins(self, live: LiveTurn) -> None:
        """The turn has begun, and nothing of it was sent anywhere."""

    def prefill_starts(self, live: LiveTurn, now_s: float) -> None:
        """Its prefill leg goes to its placement's prefiller."""

    def prefill_ends(self, live: LiveTurn, now_s: float, answer: PrefillAnswer | None) -> None:
        """Its prefill leg is over; None: it failed."""

    def decode_starts(self, live: LiveTurn, now_s: float, moves_kv: bool) -> None:
        """Its decode leg goes to its placement's decoder, which pulls KV if `moves_kv`."""

    def answered(self, live: LiveTurn, now_s: float) -> None:
        """The decoder has answered: a binding holds from here on."""

    def counted(self, live: LiveTurn) -> None:
        """All is known that the decoder's answer tells of tokens."""

    def ends(self, live: LiveTurn, ended: Ended) -> None:
        """The turn has ended. `begins` may have failed, or have been cut short by an error of its own."""


class TurnBooks:
    """All books of turns as one. Telling them never raises; who does not define an event costs it nothing."""

    def __init__(self, books: Iterable[TurnBook], errors: BookErrors) -> None:
        all_of = tuple(books)
        self.begins = _event(TurnBook.begins, [(b.name, b.begins) for b in all_of], errors)
        self.prefill_starts = _event(
            TurnBook.prefill_starts, [(b.name, b.prefill_starts) for b in all_of], errors
        )
        self.prefill_ends = _event(TurnBook.prefill_ends, [(b.name, b.prefill_ends) for b in all_of], errors)
        self.decode_starts = _event(
            TurnBook.decode_starts, [(b.name, b.decode_starts) for b in all_of], errors
        )
        self.answered = _event(TurnBook.answered, [(b.name, b.answered) for b in all_of], errors)
        self.counted = _event(TurnBook.counted, [(b.name, b.counted) for b in all_of], errors)
        self.ends = _event(TurnBook.ends, [(b.name, b.ends) for b in all_of], errors)


def _event(
    default: Callable[..., None], hearers: Iterable[tuple[str, Callable[[*Told], None]]], errors: BookErrors
) -> Event[*Told]:
    defined = [(book, hear) for book, hear in hearers if getattr(hear, "__func__", None) is not default]
    return Event(default.__name__, defined, errors)
