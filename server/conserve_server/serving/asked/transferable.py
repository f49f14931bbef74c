"""Whether a request's KV can be computed on one engine and moved to another.

vLLM hands over the KV of one prompt and one sequence a request: of several prompts it returns the first
one's transfer parameters only. What tells of the prompt itself (its log probabilities, the prompt echoed)
has to be computed where it is answered.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from conserve_server.engines.wire import COMPLETIONS_PATH, UNREADABLE, Fields

_ORDINARY: Final = {
    "n": (b"null", b"1"),
    "best_of": (b"null", b"1"),
    "use_beam_search": (b"null", b"false"),
    "echo": (b"null", b"false"),
    "prompt_logprobs": (b"null",),  # 0 asks for those of the prompt's own tokens
    "prompt_embeds": (b"null",),
}
"""Fields that ask for more than one sequence, or for what only the whole computation knows, and the values
with which they ask for neither."""
_BEGINS_WITH_ID: Final = re.compile(rb"\[[ \t\r\n]*[-0-9]")
_READ_ONE: Final = msgspec.json.Decoder(tuple[msgspec.Raw]).decode
"""Of a list with one entry; it stops at a second one."""


def is_transferable(path: str, fields: Fields) -> bool:
    """Whether a prefill on another engine brings all that the answer needs."""
    if any(name in fields and bytes(fields[name]) not in values for name, values in _ORDINARY.items()):
        return False
    prompt = fields.get("prompt") if path == COMPLETIONS_PATH else None
    return prompt is None or not _are_several(prompt)


def _are_several(prompt: msgspec.Raw) -> bool:
    """A text or a list of token ids is one prompt, a list of either is as many as it has entries."""
    view = memoryview(prompt)
    if bytes(view[:1]) != b"[" or _BEGINS_WITH_ID.match(view):
        return False
    try:
        _READ_ONE(prompt)
    except UNREADABLE:
        return True  # none, several, or the engine's to refuse
    return False
