"""Telling several of one thing: each hears of it, whatever another one raises."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Generic, TypeVarTuple

from conserve_server.telemetry.metrics import GatewayMetrics

Told = TypeVarTuple("Told")
log = logging.getLogger(__name__)


class BookErrors:
    """Errors of those who keep books: each kind is in the log once, and all are counted."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics
        self._logged: set[tuple[str, str, type[Exception]]] = set()

    def note(self, book: str, event: str, error: Exception) -> None:
        """The book failed to take note of the event."""
        kind = book, event, type(error)
        if kind not in self._logged:
            self._logged.add(kind)
            log.error("%s: %s failed; more of this are only counted", book, event, exc_info=error)
        self._metrics.book_failed(book)


class Event(Generic[*Told]):
    """Something that several hear of, in this order, each whatever another one raises."""

    __slots__ = ("_errors", "_hearers", "_name")

    def __init__(
        self, name: str, hearers: Iterable[tuple[str, Callable[[*Told], None]]], errors: BookErrors
    ) -> None:
        self._name = name
        self._hearers = tuple(hearers)
        self._errors = errors

    def __call__(self, *told: *Told) -> None:
        for book, hear in self._hearers:
            try:
                hear(*told)
            except Exception as error:  # noqa: BLE001 - logged and counted; the others must hear of it
                self._errors.note(book, self._name, error)
