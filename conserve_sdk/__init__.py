"""The ConServe client SDK: tag every agent call with its conversation.

    client = conserve_sdk.wrap(OpenAI(base_url="http://localhost:8000/v1", api_key="-"))

    with conserve_sdk.conversation(agent="researcher") as conversation:
        client.chat.completions.create(...)
        with conversation.tool("search", call_id="call_1"):
            ...
    print(conversation.report())

`instrument()` traces the process as well. `CONSERVE_DISABLED=1` switches everything off.
"""

from conserve_sdk._conversation import Conversation, conversation, current_conversation
from conserve_sdk._current import bind_context
from conserve_sdk._errors import (
    ConserveSdkError,
    GatewayRefused,
    GatewayUnreachable,
    NoGatewaySeen,
    ReportUnavailable,
    UnsupportedClient,
)
from conserve_sdk._tool_call import ToolCall
from conserve_sdk._tools import tool
from conserve_sdk._tracing import instrument
from conserve_sdk._turn import Turn
from conserve_sdk._version import __version__
from conserve_sdk._wrap import async_http_client, http_client, wrap
from conserve_sdk.protocol import ConversationReport, ConversationUpdate, Outcome, ToolReport, TurnReport

__all__ = [
    "ConserveSdkError",
    "Conversation",
    "ConversationReport",
    "ConversationUpdate",
    "GatewayRefused",
    "GatewayUnreachable",
    "NoGatewaySeen",
    "Outcome",
    "ReportUnavailable",
    "ToolCall",
    "ToolReport",
    "Turn",
    "TurnReport",
    "UnsupportedClient",
    "__version__",
    "async_http_client",
    "bind_context",
    "conversation",
    "current_conversation",
    "http_client",
    "instrument",
    "tool",
    "wrap",
]
