"""What the engine is going to say: known in full, token by token, before it speaks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import uuid4

from conserve_server.engines.emulated.schema import first_instance
from conserve_server.engines.emulated.script import Rule, ScriptedCall, first_match
from conserve_server.engines.emulated.tokens import END, TOOL_CALL, piece_id, pieces

MARK: Final = "[emulated]"
_WORDS: Final = ("the", "turn", "goes", "on", "with", "its", "own", "cache", "held", "near", "and", "kept")

FinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of a tool call as it streams: the call's name and id first, then its arguments."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class OutputToken:
    """One token of the answer and what it adds to the message; some add nothing."""

    id: int
    text: str = ""
    call: CallDelta | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """All the tokens of an answer, at least one, and why it ends."""

    tokens: tuple[OutputToken, ...]
    finish_reason: FinishReason
    stop_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """What an answer depends on. `max_tokens` is at least 1; `seed` varies the filler text."""

    text: str
    turn: int
    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stops: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None
    tools: tuple[tuple[str, dict[str, Any]], ...] = ()
    """Names and parameter schemas of the tools that may be called."""
    forced_tool: str | None = None
    is_named_tool: bool = False
    is_parallel: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Draft:
    text: str
    calls: tuple[ScriptedCall, ...] = ()
    natural_tokens: int | None = None
    is_free: bool = True
    """Whether filler text may follow, as it may not where a schema dictates the text."""


def plan_answer(ask: Ask, script: Sequence[Rule], answer_tokens: int) -> Answer:
    """The answer to `ask`. Raises SchemaError where its schema has no instance that can be made."""
    draft = _draft(ask, script, answer_tokens)
    calls = [token for index, call in enumerate(draft.calls) for token in _call_tokens(index, call)]
    text = _sized(draft, ask, len(calls))
    cut = _cut_at_stop(text, ask.stops)
    if cut is not None:
        stopped = tuple(_text_tokens(cut[0])) or (OutputToken(END),)
        if len(stopped) <= ask.max_tokens:
            return Answer(stopped, "stop", cut[1])
    tokens = [*_text_tokens(text), *calls, OutputToken(END)]
    if len(tokens) > ask.max_tokens:
        return Answer(tuple(tokens[: ask.max_tokens]), "length")
    return Answer(tuple(tokens), "tool_calls" if calls and not ask.is_named_tool else "stop")


def _draft(ask: Ask, script: Sequence[Rule], answer_tokens: int) -> _Draft:
    rule = first_match(script, ask.text, ask.turn, has_tools=bool(ask.tools))
    if rule is not None:
        calls = rule.tool_calls if ask.is_parallel else rule.tool_calls[:1]
        reply = rule.reply if rule.reply is not None else "" if calls else MARK
        return _Draft(reply, calls, rule.output_tokens, is_free=not calls)
    if ask.forced_tool is not None:
        arguments = first_instance(dict(ask.tools)[ask.forced_tool])
        forced = ScriptedCall(ask.forced_tool, arguments if isinstance(arguments, dict) else {})
        return _Draft("", (forced,), is_free=False)
    if ask.schema is not None:
        return _Draft(json.dumps(first_instance(ask.schema), ensure_ascii=False), is_free=False)
    return _Draft(MARK, natural_tokens=answer_tokens)


def _sized(draft: _Draft, ask: Ask, call_tokens: int) -> str:
    """The draft's text, cut or filled to the length that the rule and the request want."""
    target = draft.natural_tokens
    if draft.is_free:
        if ask.ignore_eos:
            target = ask.max_tokens + 1
        elif ask.min_tokens:
            target = max(ask.min_tokens, target or len(pieces(draft.text)) + 1)
    if target is None:
        return draft.text
    wanted = max(0, target - call_tokens - 1)
    return "".join(pieces(draft.text + _filler(wanted, ask.seed))[:wanted])


def _filler(words: int, seed: int) -> str:
    """At least as many tokens as words."""
    return "".join(f" {_WORDS[(seed + index) % len(_WORDS)]}" for index in range(words))


def _cut_at_stop(text: str, stops: tuple[str, ...]) -> tuple[str, str] | None:
    found = [(text.index(stop), stop) for stop in stops if stop in text]
    if not found:
        return None
    at, stop = min(found)
    return text[:at], stop


def _text_tokens(text: str) -> Iterator[OutputToken]:
    return (OutputToken(piece_id(piece), piece) for piece in pieces(text))


def _call_tokens(index: int, call: ScriptedCall) -> Iterator[OutputToken]:
    start = CallDelta(index, f"chatcmpl-tool-{uuid4().hex}", call.name)
    yield OutputToken(TOOL_CALL, call=start)
    yield from (OutputToken(piece_id(piece)) for piece in pieces(call.name))
    for piece in pieces(json.dumps(call.arguments, ensure_ascii=False)):
        yield OutputToken(piece_id(piece), call=CallDelta(index, arguments=piece))
