"""Every span and attribute name that the SDK writes.

`gen_ai.*` follows the OpenTelemetry GenAI semantic conventions (development status),
`session.id` is what dashboards group by, `conserve.*` is ours and shared with the server.
"""

from __future__ import annotations

from typing import Final

CONVERSATION_ID: Final = "gen_ai.conversation.id"
SESSION_ID: Final = "session.id"
PARENT_CONVERSATION_ID: Final = "conserve.conversation.parent_id"
METADATA: Final = "conserve.conversation.metadata."
"""What the application said of the conversation, one attribute a key: `…metadata.{key}`."""
AGENT: Final = "conserve.agent.name"
"""On every span. `gen_ai.agent.name` is left to the spans that the convention names it for."""

OPERATION: Final = "gen_ai.operation.name"
EXECUTE_TOOL: Final = "execute_tool"
INVOKE_AGENT: Final = "invoke_agent"
AGENT_NAME: Final = "gen_ai.agent.name"
TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
ERROR_TYPE: Final = "error.type"

TURN_INDEX: Final = "conserve.agent_turn.index"
"""Which turn of the application's this is, 1 for the first; the gateway counts model calls."""
INPUT: Final = "input.value"
OUTPUT: Final = "output.value"
"""OpenInference's, which dashboards show as the text of a turn; only where content is asked for."""
