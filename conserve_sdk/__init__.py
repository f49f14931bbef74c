"""The ConServe client SDK: tag every agent call with its conversation.

    client = conserve_sdk.wrap(OpenAI(base_url="http://localhost:8000/v1", api_key="-"))

    with conserve_sdk.conversation(agent="researcher") as conversation:
        client.chat.completions.create(...)
        with conversation.tool("search", call_id="call_1"):
            ...
    print(conversation.report())

`instrument()` traces the process as well. `CONSERVE_DISABLED=1` switches everything off.
"""

from conserve_sdk._conversation import Conversation, bind_context, conversation, current_conversation
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
from conserve_sdk._version import __version__
from conserve_sdk._wrap import wrap
from conserve_sdk.protocol import ConversationReport, Outcome, ToolReport, TurnReport

__all__ = [
    "ConserveSdkError",
    "Conversation",
    "ConversationReport",
    "GatewayRefused",
    "GatewayUnreachable",
    "NoGatewaySeen",
    "Outcome",
    "ReportUnavailable",
    "ToolCall",
    "ToolReport",
    "TurnReport",
    "UnsupportedClient",
    "__version__",
    "bind_context",
    "conversation",
    "current_conversation",
    "instrument",
    "tool",
    "wrap",
]
