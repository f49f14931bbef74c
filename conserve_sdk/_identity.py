"""What identifies a conversation on the wire and on spans."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from conserve_sdk import _names, protocol
from conserve_sdk._control import Gateway
from conserve_sdk._spans import Attribute


@dataclass(frozen=True)
class Identity:
    """What identifies a conversation on the wire and on spans.

    `note_gateway` takes where a request goes and gives back what to call once it was
    answered, if anyone waits for that; None where no conversation object is there to be told.
    `other_thread_id` is the running graph's thread, where that is named otherwise than every
    conversation around. `root_id` is the outermost conversation, as far as it is known.
    `branch` names the part of the conversation whose prompts grow beside the others': a
    LangGraph subgraph, one of several tasks that run at once, an agent that is a tool. Headers
    and attributes are made once: an open block has the same for all its calls.
    """

    conversation_id: str
    parent_id: str | None = None
    root_id: str | None = None
    agent: str | None = None
    metadata: Mapping[str, Attribute] = field(default_factory=dict)
    branch: str | None = None
    other_thread_id: str | None = None
    note_gateway: Callable[[Gateway], Callable[[], None] | None] | None = None

    @functools.cached_property
    def headers(self) -> Mapping[str, str]:
        """The request headers; an agent name that no header can carry is left out."""
        named = {
            protocol.CONVERSATION_ID: self.conversation_id,
            protocol.PARENT_ID: self.parent_id,
            protocol.BRANCH: self.branch,
            protocol.AGENT: protocol.clean_id(self.agent) if self.agent is not None else None,
        }
        return {name: value for name, value in named.items() if value is not None}

    @functools.cached_property
    def attributes(self) -> Mapping[str, Attribute]:
        """What spans carry."""
        named = {
            _names.CONVERSATION_ID: self.conversation_id,
            _names.SESSION_ID: self.conversation_id,
            _names.PARENT_CONVERSATION_ID: self.parent_id,
            _names.AGENT: self.agent,
            **{_names.METADATA + key: value for key, value in self.metadata.items()},
        }
        return {name: value for name, value in named.items() if value is not None}
