"""Whose turn a request is: the conversation that its headers or body fields name, ours first.

Whatever a client sends here is untrusted text, in any script: what can't be printed is left out,
its length is bounded, and it is meant within its tenant and model only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Final
from urllib.parse import quote

import msgspec

from conserve_sdk.protocol import (
    AGENT,
    BRANCH,
    CONVERSATION_ID,
    FINAL,
    PARENT_ID,
    branch_id,
    clean_id,
    header_text,
)
from conserve_server.engines.wire import Fields

DEFAULT_TENANT: Final = "default"
"""Everybody's, where no tenants are configured."""

CLAUDE_CODE_SESSION: Final = "x-claude-code-session-id"
CLAUDE_CODE_AGENT: Final = "x-claude-code-agent-id"
CODEX_SESSIONS: Final = ("session-id", "session_id")
CODEX_THREAD: Final = "thread-id"
"""Codex's session is its first thread; each sub-agent is a thread of its own in the same session."""
ID_HEADERS: Final = (
    CONVERSATION_ID,
    "x-session-id",  # vLLM, vllm-router, llm-d, Ray
    "x-dynamo-session-id",
    CLAUDE_CODE_SESSION,
    *CODEX_SESSIONS,
    "x-session-affinity",  # OpenCode
    "x-litellm-session-id",
    "helicone-session-id",
)
"""Headers that name a conversation; the first one that is there wins."""
PARENT_HEADERS: Final = (PARENT_ID, "x-dynamo-parent-session-id")
FINAL_HEADERS: Final = (FINAL, "x-dynamo-session-final")
_READ_HEADERS: Final = frozenset(
    (*ID_HEADERS, *PARENT_HEADERS, *FINAL_HEADERS, BRANCH, AGENT, CLAUDE_CODE_AGENT, CODEX_THREAD)
)
ID_FIELDS: Final = ("metadata", "conversation", "prompt_cache_key", "session_id")
"""Body fields that name a conversation where no header does; again the first one wins."""
_ASCII_BUT_PERCENT: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
MAX_FIELD_BYTES: Final = 16 * 1024
"""A longer field names nothing: no identifier is that long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The conversation of a request. A synthetic one was made up for a request that named none.

    `branch_of` is the conversation that this one is a branch of: it ends with that one.
    """

    conversation_id: str
    tenant: str
    model: str
    is_synthetic: bool = False
    agent: str | None = None
    named_parent_id: str | None = None
    branch_of: str | None = None
    is_final: bool = False
    key: str = field(init=False)
    """What the scheduler knows the conversation by: no other tenant's or model's, whatever the id."""

    def __post_init__(self) -> None:
        # Neither of the first two has a \n.
        object.__setattr__(self, "key", f"{self.tenant}\n{self.conversation_id}\n{self.model}")

    @property
    def parent_id(self) -> str | None:
        return self.branch_of or self.named_parent_id

    @property
    def engine_session(self) -> str:
        """The conversation as engines are told of it: one tenant's alone, in ASCII.

        Percent-encoded, since engines compare what headers and JSON documents name.
        """
        written = quote(self.conversation_id, safe=_ASCII_BUT_PERCENT)
        return written if self.tenant == DEFAULT_TENANT else f"{self.tenant}:{written}"


def tenant_of(key: str) -> str:
    """The tenant whose conversation the scheduler knows by this key."""
    return key.partition("\n")[0]


def read_identity(headers: Mapping[str, str], fields: Fields, *, tenant: str, model: str) -> Identity:
    """The identity that the headers (lower-case names) and the body's top-level fields carry."""
    given = {
        name: text
        for name in _READ_HEADERS.intersection(headers)
        if (text := clean_id(header_text(headers[name])))
    }
    source = next((name for name in ID_HEADERS if name in given), None)
    named = given[source] if source is not None else _named_by_field(fields)
    branch = given.get(BRANCH) or _agents_branch(source, given)
    is_branch = named is not None and branch is not None
    own_id = branch_id(named, branch) if named and branch else named or f"anonymous-{token_hex(16)}"
    return Identity(
        conversation_id=own_id,
        tenant=tenant,
        model=model,
        is_synthetic=named is None,
        agent=given.get(AGENT),
        named_parent_id=next((given[name] for name in PARENT_HEADERS if name in given), None),
        branch_of=named if is_branch else None,
        is_final=any(given.get(name, "").lower() == "true" for name in FINAL_HEADERS),
    )


def _agents_branch(source: str | None, given: Mapping[str, str]) -> str | None:
    """Which of a coding agent's own agents sends this; None for the one that the session is named after."""
    if source == CLAUDE_CODE_SESSION:
        return given.get(CLAUDE_CODE_AGENT)
    if source in CODEX_SESSIONS:
        thread = given.get(CODEX_THREAD)
        return None if thread == given[source] else thread
    return None


def read_previous_response(fields: Fields) -> str | None:
    """The answer that a request of the Responses API goes on from."""
    return _text(fields.get("previous_response_id"))


class _Metadata(msgspec.Struct):
    conversation_id: msgspec.Raw = msgspec.Raw(b"null")
    session_id: msgspec.Raw = msgspec.Raw(b"null")


class _Named(msgspec.Struct):
    id: str


def _named_by_field(fields: Fields) -> str | None:
    for name in ID_FIELDS:
        raw = fields.get(name)
        if raw is None:
            continue
        found = _of_metadata(raw) if name == "metadata" else _text(raw)
        if found is not None:
            return found
    return None


def _of_metadata(raw: msgspec.Raw) -> str | None:
    try:
        metadata = msgspec.json.decode(raw, type=_Metadata)
    except (msgspec.MsgspecError, RecursionError):
        return None
    return _text(metadata.conversation_id) or _text(metadata.session_id)


def _text(raw: msgspec.Raw | None) -> str | None:
    """A field's identifier: a string, or an object with an `id`. Anything else is the engine's to judge."""
    if raw is None or len(raw) > MAX_FIELD_BYTES:
        return None
    try:
        found = msgspec.json.decode(raw, type=str | _Named | None)
    except (msgspec.MsgspecError, RecursionError):
        return None
    named = found.id if isinstance(found, _Named) else found
    return clean_id(named) if named else None
