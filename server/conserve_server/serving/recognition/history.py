"""A message history as running hashes: what a request's next turn can be recognised by.

One hash goes over the messages, each in its canonical form (`canonical.py`); at the end of each
assistant message its value is a boundary. Of those the texts and tool calls alone count, because
clients send back the engine's answer in words of their own: null or empty content, arguments
spaced differently, fields left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import msgspec
import xxhash

from conserve_server.serving.recognition.canonical import canonical, canonical_system

_ROLE_FIRST: Final = re.compile(rb'\s*\{\s*"role"\s*:\s*"(\w+)"')
"""Almost every client writes the role first; its messages need no second look."""
_MESSAGE: Final = b"m"
_ANSWER: Final = b"a"
_RESPONSE: Final = b"r"
_SYSTEM: Final = b"s"
_THINKING: Final = frozenset({"thinking", "redacted_thinking"})
"""Parts that are no part of a history, like the `reasoning` of a chat."""


_TEXTS: Final = ("text", "output_text", "input_text")
_ANSWERED: Final = frozenset({"function_call", "reasoning"})
"""Items of the Responses API that only an answer has, beside the assistant's messages."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call as a boundary knows it. `arguments` is canonical JSON, or the text as it is."""

    id: str | None
    name: str
    arguments: bytes


class History:
    """A request's messages as hashes. `boundaries`: after each assistant message, first to last."""

    def __init__(self, seed: int) -> None:
        self._hash = xxhash.xxh3_128(seed=seed)
        self.boundaries: list[int] = []

    def add(self, message: msgspec.Raw) -> None:
        """Take in the next message."""
        if _role(message) == "assistant":
            self.boundaries.append(self._add_answer(canonical_message(message)))
        else:
            self._hash.update(_MESSAGE)
            self._hash.update(canonical(message))

    def add_items(self, items: Sequence[msgspec.Raw], *, is_answer: bool) -> None:
        """Take in items of the Responses API that follow one another: one whole answer, or none of one."""
        if is_answer:
            self.boundaries.append(
                self._add_answer(canonical_items(items) or b"".join(map(canonical, items)))
            )
            return
        for item in items:
            self._hash.update(_MESSAGE)
            self._hash.update(canonical(item))

    def add_system(self, prompt: msgspec.Raw) -> None:
        """Take in the system prompt of an API that keeps it beside the messages."""
        self._hash.update(_SYSTEM)
        self._hash.update(canonical_system(prompt))

    def boundary_after(self, answer: bytes) -> int:
        """The boundary that the next request will have, if the client goes on from this answer."""
        return self._add_answer(answer)

    def _add_answer(self, canonical: bytes) -> int:
        self._hash.update(_ANSWER)
        self._hash.update(canonical)
        return self._hash.intdigest()


def read_history(messages: msgspec.Raw, seed: int, system: msgspec.Raw | None = None) -> History | None:
    """The history in a request's `messages`, after its `system` prompt where that is a field of its own.

    None if it is no list.
    """
    try:
        items = msgspec.json.decode(messages, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError):
        return None  # the engine's to refuse
    history = History(seed)
    if system is not None:
        history.add_system(system)
    for item in items:
        history.add(item)
    return history


def read_items(items: msgspec.Raw, seed: int, instructions: msgspec.Raw | None = None) -> History | None:
    """The history in the `input` of the Responses API, after its `instructions`.

    A text stands for one message of the user. None if it is neither that nor a list.
    """
    if bytes(memoryview(items)[:1]) == b'"':
        items = msgspec.Raw(b'[{"role":"user","content":%b}]' % bytes(items))
    try:
        found = msgspec.json.decode(items, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError):
        return None
    history = History(seed)
    if instructions is not None:
        history.add_system(instructions)
    for is_answer, run in groupby(found, key=_is_answered):
        history.add_items(list(run), is_answer=is_answer)
    return history


def response_boundary(response_id: str, seed: int) -> int:
    """The boundary of an answer that the client will name by its id (Responses API)."""
    return xxhash.xxh3_128_intdigest(_RESPONSE + _utf8(response_id), seed=seed)


# -- the canonical form of an answer --------------------------------------------------------------


class _Role(msgspec.Struct):
    role: str = ""


class _Part(msgspec.Struct):
    type: str
    text: str | None = None
    id: str | None = None
    name: str = ""
    input: msgspec.Raw = msgspec.Raw(b"{}")


class _Function(msgspec.Struct):
    name: str = ""
    arguments: msgspec.Raw = msgspec.Raw(b'""')


class _Call(msgspec.Struct):
    id: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class _Assistant(msgspec.Struct):
    content: str | list[_Part] | None = None
    tool_calls: list[_Call] | None = None


class _Item(msgspec.Struct):
    """An item of the Responses API; one without a type is a message."""

    type: str = "message"
    role: str = ""
    content: str | list[_Part] | None = None
    call_id: str | None = None
    name: str = ""
    arguments: msgspec.Raw = msgspec.Raw(b'""')


class _ItemKind(msgspec.Struct):
    type: str = "message"
    role: str = ""


# Made once: a decoder made anew for each message costs more than a short message's decoding.
_READ_ASSISTANT: Final = msgspec.json.Decoder(_Assistant).decode
_READ_ITEM: Final = msgspec.json.Decoder(_Item).decode
_READ_KIND: Final = msgspec.json.Decoder(_ItemKind).decode
_READ_ARGUMENTS: Final = msgspec.json.Decoder().decode
_READ_TEXT: Final = msgspec.json.Decoder(str).decode
_WRITE_ARGUMENTS: Final = msgspec.json.Encoder(order="deterministic").encode


def canonical_answer(content: str, calls: Sequence[ToolCall]) -> bytes:
    """One form for one answer, however it was written: its texts, each after its length."""
    text = _utf8(content)
    parts = [b"%d:" % len(text), text]
    for call in calls:
        id_, name = _utf8(call.id or ""), _utf8(call.name)
        parts += (b"%d,%d,%d:" % (len(id_), len(name), len(call.arguments)), id_, name, call.arguments)
    return b"".join(parts)


def canonical_message(message: msgspec.Raw | bytes) -> bytes:
    """An assistant message in the canonical form; as any other message where it has a shape of its own."""
    try:
        read = _READ_ASSISTANT(message)
        content, calls = _content(read.content)
        calls += [_tool_call(call) for call in read.tool_calls or ()]
    except (msgspec.MsgspecError, RecursionError):
        return canonical(message)
    return canonical(message) if content is None else canonical_answer(content, calls)


def canonical_items(items: Sequence[msgspec.Raw]) -> bytes | None:
    """An answer of the Responses API in the canonical form; None where it has items of other kinds.

    Reasoning is left out: most clients do not send it back.
    """
    texts: list[str] = []
    calls: list[ToolCall] = []
    try:
        for item in map(_READ_ITEM, items):
            if item.type == "function_call":
                calls.append(ToolCall(item.call_id, item.name, _arguments(item.arguments)))
            elif item.type == "message":
                text, _ = _content(item.content)
                if text is None:
                    return None
                texts.append(text)
            elif item.type != "reasoning":
                return None
    except (msgspec.MsgspecError, RecursionError):
        return None
    return canonical_answer("".join(texts), calls)


def canonical_arguments(text: str) -> bytes:
    """A tool call's arguments; frameworks parse and write them again, so JSON is compared by value."""
    try:
        return _WRITE_ARGUMENTS(_READ_ARGUMENTS(text))
    except (msgspec.MsgspecError, RecursionError):
        return _utf8(text)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _role(message: msgspec.Raw) -> str:
    first = _ROLE_FIRST.match(memoryview(message))
    if first is not None:
        return first[1].decode("ascii", "replace")
    try:
        return msgspec.json.decode(message, type=_Role).role
    except (msgspec.MsgspecError, RecursionError):
        return ""


def _is_answered(item: msgspec.Raw) -> bool:
    """Whether an item of the Responses API is part of an answer."""
    try:
        kind = _READ_KIND(item)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return kind.type in _ANSWERED or (kind.type == "message" and kind.role == "assistant")


def _content(content: str | list[_Part] | None) -> tuple[str | None, list[ToolCall]]:
    """The text of a message's content, None if it has parts of other kinds; and its tool calls."""
    if not isinstance(content, list):
        return content or "", []
    if any(part.type not in (*_TEXTS, "tool_use") and part.type not in _THINKING for part in content):
        return None, []
    text = "".join(part.text or "" for part in content if part.type in _TEXTS)
    calls = [
        ToolCall(part.id, part.name, canonical_arguments(bytes(part.input).decode()))
        for part in content
        if part.type == "tool_use"
    ]
    return text, calls


def _tool_call(call: _Call) -> ToolCall:
    return ToolCall(call.id, call.function.name, _arguments(call.function.arguments))


def _arguments(raw: msgspec.Raw) -> bytes:
    """Of a tool call: a text that holds JSON, or the JSON itself."""
    written = bytes(raw)
    return canonical_arguments(_READ_TEXT(written) if written.startswith(b'"') else written.decode())
