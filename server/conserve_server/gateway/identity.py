"""Whose turn a request is: the conversation that its headers or body fields name, ours first.

Whatever a client sends here is untrusted text: cut to printable ASCII of bounded length,
and meant within its tenant and model only.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from conserve_sdk.protocol import AGENT, BRANCH, CONVERSATION_ID, FINAL, PARENT_ID, branch_id, clean_id
from conserve_server.engines.wire import Fields

DEFAULT_TENANT: Final = "default"
"""Everybody's, where no tenants are configured."""

CLAUDE_CODE_SESSION: Final = "x-claude-code-session-id"
CLAUDE_CODE_AGENT: Final = "x-claude-code-agent-id"
ID_HEADERS: Final = (
    CONVERSATION_ID,
    "x-session-id",  # vLLM, vllm-router, llm-d, Ray
    "x-dynamo-session-id",
    CLAUDE_CODE_SESSION,
    "session-id",  # Codex
    "session_id",
    "x-session-affinity",  # OpenCode
    "x-litellm-session-id",
    "helicone-session-id",
)
"""Headers that name a conversation; the first one that is there wins."""
PARENT_HEADERS: Final = (PARENT_ID, "x-dynamo-parent-session-id")
FINAL_HEADERS: Final = (FINAL, "x-dynamo-session-final")
ID_FIELDS: Final = ("metadata", "conversation", "prompt_cache_key", "session_id")
"""Body fields that name a conversation where no header does; again the first one wins."""
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

    @property
    def key(self) -> str:
        """What the scheduler knows the conversation by: no other tenant's or model's, whatever the id."""
        return f"{self.tenant}\n{self.conversation_id}\n{self.model}"  # neither of the first two has a \n

    @property
    def parent_id(self) -> str | None:
        return self.branch_of or self.named_parent_id

    @property
    def engine_session(self) -> str:
        """The conversation as engines are told of it: one tenant's alone."""
        if self.tenant == DEFAULT_TENANT:
            return self.conversation_id
        return f"{self.tenant}:{self.conversation_id}"


def tenant_of(key: str) -> str:
    """The tenant whose conversation the scheduler knows by this key."""
    return key.partition("\n")[0]


def read_identity(headers: Mapping[str, str], fields: Fields, *, tenant: str, model: str) -> Identity:
    """The identity that the headers (lower-case names) and the body's top-level fields carry."""
    source, named = _named_by_header(headers)
    named = named or _named_by_field(fields)
    branch = _header(headers, BRANCH)
    if branch is None and source == CLAUDE_CODE_SESSION:
        branch = _header(headers, CLAUDE_CODE_AGENT)
    is_branch = named is not None and branch is not None
    own_id = branch_id(named, branch) if named and branch else named or f"anonymous-{uuid.uuid4().hex}"
    return Identity(
        conversation_id=own_id,
        tenant=tenant,
        model=model,
        is_synthetic=named is None,
        agent=_header(headers, AGENT),
        named_parent_id=next((found for name in PARENT_HEADERS if (found := _header(headers, name))), None),
        branch_of=named if is_branch else None,
        is_final=any(headers.get(name, "").strip().lower() == "true" for name in FINAL_HEADERS),
    )


def read_previous_response(fields: Fields) -> str | None:
    """The answer that a request of the Responses API goes on from."""
    return _text(fields.get("previous_response_id"))


def _named_by_header(headers: Mapping[str, str]) -> tuple[str | None, str | None]:
    for name in ID_HEADERS:
        if found := _header(headers, name):
            return name, found
    return None, None


def _header(headers: Mapping[str, str], name: str) -> str | None:
    text = headers.get(name)
    return clean_id(text) if text else None


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
