"""Header names, paths, identifiers and sampling: what both sides must agree on to the letter."""

from __future__ import annotations

import os
import pathlib
from typing import Final

# -- request headers -------------------------------------------------------------------
CONVERSATION_ID: Final = "x-conserve-conversation-id"
PARENT_ID: Final = "x-conserve-parent-id"
AGENT: Final = "x-conserve-agent"
BRANCH: Final = "x-conserve-branch"
"""Names one of several prompts that grow side by side in the conversation, such as a LangGraph
subgraph's; each branch is a child conversation with a binding of its own (`branch_id`)."""
FINAL: Final = "x-conserve-final"
"""`true` on a request says that this turn is the conversation's last."""

# -- response headers: the route receipt ------------------------------------------------
RECEIPT_TURN: Final = "x-conserve-turn"
RECEIPT_PATH: Final = "x-conserve-path"
RECEIPT_PREFILLER: Final = "x-conserve-prefiller"
RECEIPT_DECODER: Final = "x-conserve-decoder"
RECEIPT_CACHED_TOKENS: Final = "x-conserve-cached-tokens"
"""Only where the answer's usage is known before its first byte is sent (not streamed)."""
RECEIPT_REBIND: Final = "x-conserve-rebind"
"""Why this turn bound its conversation once more (`RebindCause`); absent where it did not."""
RECEIPT_PLACEMENTS: Final = "x-conserve-placements"
"""How often the turn was placed, engines having failed it before; absent where once was enough."""
RECEIPT_ENERGY_J: Final = "x-conserve-energy-j"
"""Joules charged to the conversation so far, without this turn's; absent where none are known."""
RECEIPT_ENERGY_SOURCE: Final = "x-conserve-energy-source"
"""How they are known: `measured`, `modelled` or `replayed`."""
RECEIPT_EMULATED: Final = "x-conserve-emulated"
"""`true` where an emulated engine answered; absent on real engines."""

EXPOSED_HEADERS: Final = (
    CONVERSATION_ID,
    RECEIPT_TURN,
    RECEIPT_PATH,
    RECEIPT_PREFILLER,
    RECEIPT_DECODER,
    RECEIPT_CACHED_TOKENS,
    RECEIPT_REBIND,
    RECEIPT_PLACEMENTS,
    RECEIPT_EMULATED,
)
"""The whole receipt, as a browser must be told that its pages may read it."""

MAX_ID_LENGTH: Final = 256
"""Longest identifier, in bytes of UTF-8; a longer one is shortened to its beginning and a digest."""
_JOINERS: Final = "\u200c\u200d"
"""They tell words apart in Persian, in the scripts of India and in emoji, and Python prints neither."""

CONVERSATIONS_PATH: Final = "/v1/conversations"
"""Lists recent conversations (`GET`)."""


LIVE_PATH: Final = "/v1/events"
"""What happens now, as server-sent events (`GET`); each is an `Update`."""


def conversation_path(conversation_id: str) -> str:
    """The path of a conversation's report (`GET`) and release (`DELETE`)."""
    from urllib.parse import quote

    return f"{CONVERSATIONS_PATH}/{quote(conversation_id, safe='')}"


def events_path(conversation_id: str) -> str:
    """The path that takes a conversation's tool boundaries (`POST`)."""
    return conversation_path(conversation_id) + "/events"


def trace_dir() -> pathlib.Path:
    """The folder where both sides write spans, as OTLP JSON lines, when no collector is configured.

    `$CONSERVE_TRACE_DIR`, else `conserve/traces` under `$XDG_STATE_HOME` (`~/.local/state`).
    """
    chosen = os.environ.get("CONSERVE_TRACE_DIR")
    if chosen:
        return pathlib.Path(chosen).expanduser()
    state = os.environ.get("XDG_STATE_HOME")
    base = pathlib.Path(state) if state else pathlib.Path.home() / ".local" / "state"
    return base / "conserve" / "traces"


def clean_id(text: str) -> str | None:
    """The identifier as both sides write it, in any script; None if nothing of it can be printed.

    What can't be printed is left out (controls, line breaks, marks of direction, half characters),
    and it has at most `MAX_ID_LENGTH` bytes. In headers it travels as UTF-8.
    """
    kept = text if text.isascii() and text.isprintable() else "".join(filter(_is_printed, text))
    kept = kept.strip()
    return _shortened(kept) if kept else None


def _is_printed(character: str) -> bool:
    return character.isprintable() or character in _JOINERS


def header_text(value: str) -> str:
    """A header's text, as UTF-8 where it is that. `value`: its bytes as Latin-1, as servers give them."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def branch_id(conversation_id: str, branch: str) -> str:
    """The identifier of a conversation's branch; both are clean identifiers."""
    return _shortened(f"{conversation_id}/{branch}")


def _shortened(text: str) -> str:
    """The text itself, or its beginning and a digest of the whole: two long ones never become one."""
    if len(text) * 4 <= MAX_ID_LENGTH or len(written := text.encode()) <= MAX_ID_LENGTH:
        return text
    from hashlib import blake2b

    digest = blake2b(written, digest_size=16).hexdigest()
    beginning = written[: MAX_ID_LENGTH - len(digest) - 1].decode(errors="ignore")
    return f"{beginning}~{digest}"


SAMPLER_VARIABLE: Final = "OTEL_TRACES_SAMPLER"
SAMPLER_ARGUMENT_VARIABLE: Final = "OTEL_TRACES_SAMPLER_ARG"
SAMPLER: Final = "conserve_conversation"
"""The value of `OTEL_TRACES_SAMPLER` that keeps or drops conversations whole, on both sides."""


def kept_share(text: str) -> float:
    """The share of conversations to keep, from 0 to 1; all where none is given. Raises ValueError."""
    try:
        share = float(text) if text.strip() else 1.0
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"{SAMPLER_ARGUMENT_VARIABLE}={text} must be a share of conversations from 0 to 1")
    return share


def is_kept(conversation_id: str, share: float) -> bool:
    """Whether this conversation is among the share that is traced: by its id alone, alike everywhere."""
    from hashlib import blake2b

    digest = blake2b(conversation_id.encode(), digest_size=8, person=b"conserve-trace").digest()
    return int.from_bytes(digest, "big") < share * 2**64
