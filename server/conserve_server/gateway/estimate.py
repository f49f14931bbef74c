"""How long a prompt is before an engine has tokenised it: its bytes over the bytes per token seen."""

from __future__ import annotations

from typing import Final

FIRST_BYTES_PER_TOKEN: Final = 4.0
"""English text with today's tokenizers; only until the first answer has been counted."""
WEIGHT: Final = 0.1
"""Share of the newest observation in the running mean."""


class TokenEstimate:
    """A running mean of body bytes per prompt token, JSON around the messages included."""

    def __init__(self) -> None:
        self._bytes_per_token = FIRST_BYTES_PER_TOKEN

    def prompt_tokens(self, body_bytes: int) -> int:
        """The estimate, at least 1 token."""
        return max(1, round(body_bytes / self._bytes_per_token))

    def learn(self, body_bytes: int, prompt_tokens: int) -> None:
        """Take in a prompt whose length an engine has counted."""
        if prompt_tokens > 0:
            self._bytes_per_token += WEIGHT * (body_bytes / prompt_tokens - self._bytes_per_token)
