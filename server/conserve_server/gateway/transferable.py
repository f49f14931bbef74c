"""Whether a request's KV can be computed on one engine and moved to another.

vLLM hands over the KV of one prompt and one sequence a request: of several prompts it returns the first
one's transfer parameters only. What tells of the prompt itself (its log probabilities, the prompt echoed)
has to be computed where it is answered.
"""

from __future__ import annotations

from typing import Final

import msgspec

from conserve_server.engines.wire import COMPLETIONS_PATH, UNREADABLE, Fields

_NONE: Final = frozenset({b"null", b"false", b"0", b"1"})
_ALONE: Final = ("n", "best_of", "use_beam_search", "prompt_logprobs", "echo", "prompt_embeds")
"""Fields that ask for more than one sequence, or for what only the whole computation knows."""
_READ_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


def is_transferable(path: str, fields: Fields) -> bool:
    """Whether a prefill on another engine brings all that the answer needs."""
    if any(name in fields and bytes(fields[name]) not in _NONE for name in _ALONE):
        return False
    prompt = fields.get("prompt") if path == COMPLETIONS_PATH else None
    return prompt is None or not _are_several(prompt)


def _are_several(prompt: msgspec.Raw) -> bool:
    """A text or a list of token ids is one prompt, a list of either is as many as it has entries."""
    beginning = bytes(memoryview(prompt)[:64]).lstrip(b"[ \t\r\n")
    is_list = bytes(memoryview(prompt)[:1]) == b"["
    if not is_list or (beginning[:1].isdigit() and not _is_nested(prompt)):
        return False
    try:
        return len(_READ_LIST(prompt)) != 1
    except UNREADABLE:
        return True  # the engine's to refuse


def _is_nested(prompt: msgspec.Raw) -> bool:
    return bytes(memoryview(prompt)[:64]).replace(b" ", b"").startswith(b"[[")
