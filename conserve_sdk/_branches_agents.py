"""The branch of a model call in a run of the OpenAI Agents SDK: the tools that it is made inside of.

An agent that is a tool of another has a prompt of its own, which goes on from call to call;
agents that hand over to one another share one history and have no branch. The SDK's current
span knows the one that was current before it, also where tracing is disabled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import islice, zip_longest
from typing import Any, Final

from conserve_sdk._branches import Task, branch_of

_SCOPE: Final = "agents.tracing.scope"
_NO_ID: Final = "no-op"
"""The id of every span while tracing is disabled."""
_DEEPEST: Final = 256
"""Spans that are looked through at most."""


def current_span() -> Any:
    """The SDK's current span, None where it runs nothing here; it is never imported for it."""
    scope = getattr(sys.modules.get(_SCOPE), "Scope", None)
    read: Callable[[], Any] | None = getattr(scope, "get_current_span", None)
    return read() if read is not None else None


def agents_branch(outside: object | None = None) -> str | None:
    """The branch by the tools inside the span `outside`, in which the conversation's block was entered."""
    tasks: list[Task] = []
    spans = list(islice(_outwards(current_span(), outside), _DEEPEST))
    for span, around in zip_longest(spans, spans[1:]):
        if type(span.span_data).__name__ == "FunctionSpanData":
            tasks.append(Task(str(span.span_data.name), span.span_id, _turn_id(around)))
    return branch_of(reversed(tasks))


def _outwards(span: Any, outside: object | None) -> Iterator[Any]:
    while span is not None and span is not outside and hasattr(span, "span_data"):
        yield span
        span = getattr(getattr(span, "_prev_span_token", None), "old_value", None)


def _turn_id(span: Any) -> str | None:
    """The turn that called the tool: its other calls run at once. None where it is not known."""
    if span is None or type(span.span_data).__name__ != "TurnSpanData" or span.span_id == _NO_ID:
        return None
    return str(span.span_id)
