"""The emulated tokenizer and chat template.

Text is cut into pieces of at most four characters after their whitespace, and each piece is
hashed to an id, so equal text has equal ids on every engine. The template frames each
message by ids of its own, so that a conversation's next prompt starts with exactly the
tokens of its last prompt and answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final
from zlib import crc32

from conserve_server.engines.emulated.requests import Message, Tool

VOCABULARY: Final = 1 << 20
END: Final = 0
"""Ends a message; as an answer's last token, the end-of-sequence token."""
TOOL_CALL: Final = 1
_ROLES: Final = {"system": 2, "user": 3, "assistant": 4, "tool": 5, "developer": 6}
_OTHER_ROLE: Final = 7
_TOOLS: Final = 8
_FIRST_PIECE: Final = 16
_PIECE: Final = re.compile(r"\s{0,3}\w{1,4}|\s{0,3}[^\w\s]|\s{1,4}")


def pieces(text: str) -> list[str]:
    """`text` cut into token texts; they join to `text`, and so does any prefix of them."""
    return _PIECE.findall(text)


def piece_id(piece: str) -> int:
    return crc32(piece.encode("utf-8", "surrogatepass")) % (VOCABULARY - _FIRST_PIECE) + _FIRST_PIECE


def encode(text: str) -> list[int]:
    """The token ids of `text`."""
    return [piece_id(piece) for piece in pieces(text)]


def encode_chat(messages: Iterable[Message], tools: Iterable[Tool]) -> list[int]:
    """The token ids of a chat prompt, ending where the assistant is to speak."""
    ids: list[int] = []
    for tool in tools:
        ids += [_TOOLS, *encode(json.dumps(tool.function.model_dump(), sort_keys=True)), END]
    for message in messages:
        ids += [_ROLES.get(message.role, _OTHER_ROLE), *encode(message.text)]
        for call in message.tool_calls or ():
            ids += [TOOL_CALL, *encode(call.function.name)]
            ids += encode(canonical_arguments(call.function.arguments))
        ids.append(END)
    return [*ids, _ROLES["assistant"]]


def canonical_arguments(arguments: str) -> str:
    """A tool call's arguments as the engine writes them, however the client re-serialised them."""
    try:
        return json.dumps(json.loads(arguments), ensure_ascii=False)
    except json.JSONDecodeError:
        return arguments
