"""One form for messages that a model reads alike, in whatever words a client writes them.

Clients repeat their history with every request and rarely in the same bytes. What makes no
difference here, since no chat template reads it:

- white space and the order of keys; escapes in strings; fields that are null or empty;
- `cache_control`, which Anthropic's clients, Pydantic AI and LiteLLM move from turn to turn;
- a text as a string or as one part of type `text`, `input_text` or `output_text` (LiteLLM and
  pydantic-ai turn one into the other where a marker comes or goes), and what else such a part has;
- a message's `id`, times, `status` and metadata (AG-UI, Vercel's AI SDK, LangChain, Responses);
- `is_error: false` of a tool's result, `type: message` of an item;
- a system block that begins with `x-anthropic-billing-header` (Claude Code's, which vLLM drops too).

Everything else does: texts, roles, names, ids of tool calls, pictures, and the order of messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

_READ_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_READ_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_READ_STRING: Final = msgspec.json.Decoder(str).decode
_WRITE: Final = msgspec.json.Encoder().encode

_MARKER: Final = "cache_control"
_NOT_READ: Final = frozenset(
    {
        _MARKER,
        "id",
        "created",
        "created_at",
        "createdAt",
        "timestamp",
        "status",
        "metadata",
        "additional_kwargs",
        "response_metadata",
        "annotations",
        "usage",
    }
)
"""Fields of a message that say nothing to a model."""
_EMPTY: Final = frozenset({b"null", b'""', b"[]", b"{}"})
_TEXT_TYPES: Final = frozenset({b'"text"', b'"input_text"', b'"output_text"'})
_CONTENTS: Final = frozenset({"content", "output"})
"""Fields that hold a text or parts: a message's, a tool result's, a function call's output."""
_DEFAULTS: Final = {"is_error": b"false", "type": b'"message"'}
_BILLING: Final = b'"x-anthropic-billing-header'


def canonical(message: msgspec.Raw | bytes) -> bytes:
    """A message of the user, the system or a tool in its one form; its own bytes where it is no object."""
    try:
        fields = _READ_OBJECT(message)
        parts: list[bytes] = []
        _write_object({name: fields[name] for name in fields.keys() - _NOT_READ}, parts)
    except (msgspec.MsgspecError, RecursionError):
        return bytes(message)
    return b"".join(parts)


def canonical_system(prompt: msgspec.Raw) -> bytes:
    """A system prompt that stands beside the messages: a text, or blocks of text."""
    try:
        parts: list[bytes] = []
        _write_content(prompt, parts)
    except (msgspec.MsgspecError, RecursionError):
        return bytes(prompt)
    return b"".join(part for part in parts if not part.startswith(_BILLING))


def _write(raw: msgspec.Raw, parts: list[bytes]) -> None:
    first = bytes(memoryview(raw)[:1])
    if first == b'"':
        parts.append(_string(raw))
    elif first == b"{":
        _write_object(_READ_OBJECT(raw), parts)
    elif first == b"[":
        parts.append(b"[")
        for item in _READ_LIST(raw):
            _write(item, parts)
            parts.append(b",")
        parts.append(b"]")
    else:
        parts.append(bytes(raw))


def _write_object(fields: Mapping[str, msgspec.Raw], parts: list[bytes]) -> None:
    parts.append(b"{")
    for name in sorted(fields):
        raw = fields[name]
        if name == _MARKER or _is_as_if_absent(name, raw):
            continue
        parts += (_WRITE(name), b":")
        if name in _CONTENTS:
            _write_content(raw, parts)
        else:
            _write(raw, parts)
        parts.append(b",")
    parts.append(b"}")


def _write_content(raw: msgspec.Raw, parts: list[bytes]) -> None:
    """A text, or parts of which some are texts; one text is written alike in both."""
    first = bytes(memoryview(raw)[:1])
    if first == b'"':
        parts.append(_string(raw) + b";")
    elif first == b"[":
        for item in _READ_LIST(raw):
            _write_part(item, parts)
    else:
        _write(raw, parts)


def _write_part(raw: msgspec.Raw, parts: list[bytes]) -> None:
    fields = _READ_OBJECT(raw) if bytes(memoryview(raw)[:1]) == b"{" else {"text": raw}
    text = fields.get("text")
    if text is not None and bytes(fields.get("type", b'"text"')) in _TEXT_TYPES:
        _write_content(text, parts)
    else:
        _write_object(fields, parts)
        parts.append(b";")


def _is_as_if_absent(name: str, raw: msgspec.Raw) -> bool:
    if len(raw) > len(_DEFAULTS["type"]):
        return False
    value = bytes(raw)
    return value in _EMPTY or _DEFAULTS.get(name) == value


def _string(raw: msgspec.Raw) -> bytes:
    """A string with one way of escaping; one that has only the escapes that JSON demands is not decoded."""
    written = bytes(raw)
    if b"\\u" in written or b"\\/" in written:
        return _WRITE(_READ_STRING(written))
    return written
