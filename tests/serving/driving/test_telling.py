"""Several who are told of one thing."""

from __future__ import annotations

import logging

import pytest

from conserve_server.serving.driving.telling import BookErrors, Event
from conserve_server.telemetry.metrics import GatewayMetrics


def broken(_number: int) -> None:
    raise ValueError("no such label")


def test_each_hears_in_order_whatever_another_one_raises(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []
    metrics = GatewayMetrics()
    tell = Event[int](
        "ends",
        [
            ("first", lambda number: heard.append(f"first {number}")),
            ("broken", broken),
            ("last", lambda number: heard.append(f"last {number}")),
        ],
        BookErrors(metrics),
    )
    with caplog.at_level(logging.ERROR):
        tell(1)
        tell(2)
    assert heard == ["first 1", "last 1", "first 2", "last 2"]
    assert b'conserve_book_errors_total{book="broken"} 2.0' in metrics.page()
    assert [record.getMessage() for record in caplog.records] == [
        "broken: ends failed; more of this are only counted"
    ]


def test_an_error_of_another_kind_is_logged_as_well(caplog: pytest.LogCaptureFixture) -> None:
    errors = BookErrors(GatewayMetrics())
    with caplog.at_level(logging.ERROR):
        for error in (ValueError("a"), ValueError("b"), KeyError("c")):
            errors.note("metrics", "ends", error)
        errors.note("metrics", "begins", ValueError("d"))
    assert len(caplog.records) == 3
