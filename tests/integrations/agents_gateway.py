"""A gateway over emulated engines whose model calls the tools that a test names, then answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from conserve_sdk import Outcome, ToolReport
from conserve_server.engines.emulated import Rule, ScriptedCall
from conserve_server.engines.engine import Role
from tests.gateway.conftest import MODEL, Served, engine_config, served

QUESTION = "please use your tools"
ANSWER = "done"
LIMIT_S = 20.0
__all__ = ["ANSWER", "LIMIT_S", "MODEL", "QUESTION", "Served", "outcomes", "tree", "with_tools"]


@asynccontextmanager
async def with_tools(*tools: str, rules: Iterable[Rule] = ()) -> AsyncIterator[Served]:
    """Asked `QUESTION`, the model calls each of the tools at once; to anything else it says `ANSWER`."""
    calls = tuple(ScriptedCall(tool, {}) for tool in tools)
    first = (Rule(match=QUESTION, tool_calls=calls),) if calls else ()
    engine = engine_config(Role.DECODE, "decode-0", script=(*rules, *first, Rule(reply=ANSWER)))
    async with served(decode=[engine]) as gateway:
        yield gateway


def outcomes(tools: Iterable[ToolReport]) -> dict[str, Outcome | None]:
    return {tool.name: tool.outcome for tool in tools}


def tree(spans: Iterable[ReadableSpan]) -> list[str]:
    """Each span's path of names from its trace's root, sorted: `a > b` is b below a."""
    by_id = {span.context.span_id: span for span in spans if span.context}

    def path(span: ReadableSpan) -> str:
        parent = by_id.get(span.parent.span_id) if span.parent else None
        return f"{path(parent)} > {span.name}" if parent else span.name

    return sorted(path(span) for span in by_id.values())


def ids(spans: Iterable[ReadableSpan]) -> set[Any]:
    """The conversations and the sessions that spans are stamped with."""
    return {
        (span.attributes or {}).get(n) for span in spans for n in ("gen_ai.conversation.id", "session.id")
    }
