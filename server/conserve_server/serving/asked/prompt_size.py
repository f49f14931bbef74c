"""How large a request's prompt is, as far as its bytes tell: text, and media that stands in it as base64.

A picture of a megabyte is a thousand tokens at most; its bytes say nothing of them. Media is found by its
beginning and its closing quote, wherever it stands: data URLs (`image_url`, `video_url`, `file`,
`input_image`), and base64 that is the value of `data` (Anthropic's sources, `input_audio`), of `file_data`
or of vLLM's `image_embeds`, `audio_embeds`. Nothing is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MIN_MEDIA_BYTES: Final = 256
"""A shorter value is a word, not a file."""
MAX_TYPE_BYTES: Final = 120
"""Of a data URL before its data: `data:` and the media's type."""
_DATA_URL: Final = b";base64,"
_MARKS: Final = (_DATA_URL, b'"data"', b'"file_data"', b'"image_embeds"', b'"audio_embeds"')
_BASE64: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=-_"


@dataclass(frozen=True, slots=True)
class PromptSize:
    """Bytes of the body without its media, and how many media items it has."""

    text_bytes: int
    media_items: int = 0


def prompt_size(body: bytes) -> PromptSize:
    """The size of the prompt in this body, in one pass for each mark."""
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
    if mark is _DATA_URL:  # a quote near by on both sides keeps the pass linear, whatever a text says
        start = after if body.rfind(b'"data:', max(0, after - MAX_TYPE_BYTES), after) >= 0 else 0
    else:
        start = _value(body, after)
    end = body.find(b'"', start) if start > 0 else -1
    return end - start if end - start >= MIN_MEDIA_BYTES else 0


def _value(body: bytes, at: int) -> int:
    """Where the text that is a key's value begins; 0 where its value is none, or begins as no base64 does."""
    beginning = body[at : at + 16].lstrip()
    if not beginning.startswith(b":"):
        return 0
    start = body.find(b'"', at, at + 16) + 1
    sample = body[start : start + MIN_MEDIA_BYTES].replace(rb"\/", b"/").removesuffix(b"\\")
    return 0 if start == 0 or sample.translate(None, _BASE64) else start
