"""What others write and we keep, show or log: cut to a length that nobody needs more of.

Names that something is found by are shortened by `conserve_sdk.protocol.clean_id`, which keeps two of
them apart; sentences are cut here.
"""

from __future__ import annotations

from typing import Final

MAX_TEXT_LENGTH: Final = 4096
"""Characters: several times the longest error that an engine writes about one field."""
_CUT: Final = " … (cut)"


def cut(text: str, limit: int = MAX_TEXT_LENGTH) -> str:
    """The text, or its beginning and a word that this is not all."""
    return text if len(text) <= limit else text[: limit - len(_CUT)] + _CUT
