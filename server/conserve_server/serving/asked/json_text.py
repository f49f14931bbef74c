"""A client's JSON before anything is made of it: is it UTF-8, are its parts few enough, what is wrong."""

from __future__ import annotations

import re
from itertools import islice
from typing import Final

from conserve_server.core.errors import InvalidRequest

MAX_ITEMS: Final = 250_000
"""Strings, objects and lists of a body, keys included: ten times what a history of a million tokens has.
Reading them is what costs time: numbers and long texts are nearly free."""
_ITEM: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[{\[]', re.DOTALL)
"""A text that does not end counts too: looking for its end from each quote in it would take for ever."""
_ITEM_OR_COMMA: Final = re.compile(_ITEM.pattern[:-1] + rb",]", re.DOTALL)
_ESCAPE: Final = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F]..)|.)", re.DOTALL)
_LOOKED_AT: Final = 100_000
"""Escapes, until nobody says where the wrong one is."""
_PACKED: Final = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


def has_more_items(text: bytes, limit: int, *, counts_commas: bool = False) -> bool:
    """Whether this JSON has more than `limit` strings, objects and lists; what is far below costs nothing.

    With `counts_commas` numbers count too, at least all but one of each list.
    """
    if len(text) <= limit:
        return False
    commas = text.count(b",") if counts_commas else 0
    if text.count(b'"') // 2 + text.count(b"{") + text.count(b"[") + commas <= limit:
        return False
    items = _ITEM_OR_COMMA if counts_commas else _ITEM
    return next(islice(items.finditer(text), limit, None), None) is not None


def check_text(body: bytes) -> None:
    """Raises InvalidRequest (400) for bytes that are not UTF-8, naming the place, and for too many items."""
    if not body.isascii():
        _check_utf8(body)
    if has_more_items(body, MAX_ITEMS):
        raise InvalidRequest(
            f"the body has more than {MAX_ITEMS} strings, objects and lists: send less at once",
            code="too_many_items",
        )


def _check_utf8(body: bytes) -> None:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"the body is not UTF-8: byte {error.start} is 0x{body[error.start]:02x} ({error.reason})",
            code="invalid_json",
        ) from None


def what_is_wrong(body: bytes, error: Exception) -> str:
    """Why this body could not be read, where its reader's own word for it would mislead."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if body.startswith(_PACKED):
        return "it is packed: send it as it is"
    if body.startswith(_BYTE_ORDER_MARK):
        return "it begins with a byte order mark: leave it out"
    for escape in islice(_ESCAPE.finditer(body), _LOOKED_AT):
        if escape[1] is not None:
            return f"byte {escape.start()} begins half of a character, \\{escape[1].decode('latin-1')}"
    return str(error)
