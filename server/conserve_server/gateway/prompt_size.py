"""How large a request's prompt is, as far as its bytes tell: text, and media that stands in it as base64.

A picture of a megabyte is a thousand tokens at most; its bytes say nothing of them. Media is found by its
beginning and its closing quote, wherever it stands: data URLs (`image_url`, `video_url`, `file`,
`input_image`), and values of `data` (Anthropic's sources, `input_audio`). Nothing is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MIN_MEDIA_BYTES: Final = 256
"""A shorter value of `data` is a word, not a file."""
MAX_TYPE_BYTES: Final = 120
"""Of a data URL before its data: `data:` and the media's type."""
_MARKS: Final = (b";base64,", b'"data"')


@dataclass(frozen=True, slots=True)
class PromptSize:
    """Bytes of the body without its media, and how many media items it has."""

    text_bytes: int
    media_items: int = 0


def prompt_size(body: bytes) -> PromptSize:
    """The size of the prompt in this body, in one pass for each of two marks."""
    items = bytes_of_media = 0
    for mark in _MARKS:
        at = body.find(mark)
        while at >= 0:
            after = at + len(mark)
            found = _media(body, mark, after)
            items += found > 0
            bytes_of_media += found
            at = body.find(mark, after + found)
    return PromptSize(len(body) - bytes_of_media, items)


def _media(body: bytes, mark: bytes, after: int) -> int:
    """Bytes of the media whose mark ends there; 0 where it is none."""
    if mark is _MARKS[0]:  # a quote near by on both sides keeps the pass linear, whatever a text says
        start = after if body.rfind(b'"data:', max(0, after - MAX_TYPE_BYTES), after) >= 0 else 0
    else:
        start = _value(body, after)
    end = body.find(b'"', start) if start > 0 else -1
    if end - start < MIN_MEDIA_BYTES or body.find(_MARKS[0], start, start + 64) >= 0:
        return 0
    return end - start


def _value(body: bytes, at: int) -> int:
    """Where the text that is a key's value begins; 0 where its value is none, or has spaces as prose has."""
    beginning = body[at : at + 16].lstrip()
    if not beginning.startswith(b":"):
        return 0
    start = body.find(b'"', at, at + 16) + 1
    is_prose = b" " in body[start : start + MIN_MEDIA_BYTES]
    return 0 if start == 0 or is_prose else start
