"""How long a prompt is before an engine has tokenised it: its bytes over the bytes per token seen.

Each tenant, model and API has a mean of its own, learned from requests of text alone: what one of
them sends (numbers, base64, another script) says nothing of another's prompts. A media item has a mean by
tenant and model.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple, TypeVar

from conserve_server.serving.asked.identity import Identity
from conserve_server.serving.asked.prompt_size import PromptSize

Key = TypeVar("Key")

FIRST_BYTES_PER_TOKEN: Final = 4.0
"""English text with today's tokenizers; only until the first answer has been counted."""
LEAST_BYTES_PER_TOKEN: Final = 1.0
MOST_BYTES_PER_TOKEN: Final = 16.0
"""No text is denser or thinner for long; what is has fields that no model reads."""
FIRST_MEDIA_TOKENS: Final = 1000.0
"""A picture of a megapixel, as most vision models cut it."""
MOST_MEDIA_TOKENS: Final = 20_000.0
WEIGHT: Final = 0.1
"""Share of the newest observation in the running mean."""
MAX_MEANS: Final = 10_000
"""Of each kind; the one that has learned nothing for the longest time is forgotten."""


class Kind(NamedTuple):
    """Whose prompts have one mean: clients can make up models, tenants and APIs they cannot."""

    tenant: str
    model: str
    api: str


def kind_of(identity: Identity, path: str) -> Kind:
    """The kind of a conversation's requests to this route."""
    return Kind(identity.tenant, identity.model, path)


class TokenEstimate:
    """Running means of body bytes per prompt token, JSON around the messages included."""

    def __init__(self) -> None:
        self._bytes_per_token: OrderedDict[Kind, float] = OrderedDict()
        self._media_tokens: OrderedDict[tuple[str, str], float] = OrderedDict()

    def prompt_tokens(self, kind: Kind, size: PromptSize, longest: int | None = None) -> int:
        """The estimate, at least 1 token. `longest`: what the model takes, where that is known."""
        text = size.text_bytes / self._bytes_per_token.get(kind, FIRST_BYTES_PER_TOKEN)
        media = size.media_items * self._media_tokens.get((kind.tenant, kind.model), FIRST_MEDIA_TOKENS)
        tokens = max(1, round(text + media))
        return tokens if longest is None else min(tokens, longest)

    def learn(self, kind: Kind, size: PromptSize, prompt_tokens: int) -> None:
        """Take in a prompt whose length an engine has counted."""
        if prompt_tokens <= 0:
            return
        if size.media_items:
            text = size.text_bytes / self._bytes_per_token.get(kind, FIRST_BYTES_PER_TOKEN)
            seen = min(max((prompt_tokens - text) / size.media_items, 1.0), MOST_MEDIA_TOKENS)
            _take(self._media_tokens, (kind.tenant, kind.model), seen, FIRST_MEDIA_TOKENS)
        else:
            seen = min(max(size.text_bytes / prompt_tokens, LEAST_BYTES_PER_TOKEN), MOST_BYTES_PER_TOKEN)
            _take(self._bytes_per_token, kind, seen, FIRST_BYTES_PER_TOKEN)


def _take(means: OrderedDict[Key, float], key: Key, seen: float, first: float) -> None:
    mean = means.get(key, first)
    means[key] = mean + WEIGHT * (seen - mean)
    means.move_to_end(key)
    if len(means) > MAX_MEANS:
        means.popitem(last=False)
