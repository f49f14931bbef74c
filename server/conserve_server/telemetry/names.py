"""Every span, attribute and metric name that the server writes.

`gen_ai.*` follows the OpenTelemetry GenAI semantic conventions (development status, as of
opentelemetry-semantic-conventions 0.66b2); `session.id` is OpenInference's, which dashboards
group by; `conserve.*` is ours.
"""

from __future__ import annotations

from typing import Final

# -- spans -----------------------------------------------------------------------------
SPAN_CONVERSATION: Final = "conserve.conversation"
SPAN_TURN: Final = "conserve.turn"
SPAN_ADMISSION: Final = "conserve.admission"
SPAN_PREFILL: Final = "conserve.prefill"
SPAN_TRANSFER: Final = "conserve.transfer"
SPAN_DECODE: Final = "conserve.decode"
SPAN_ENERGY: Final = "conserve.energy"
"""A turn's joules: written once they are known, which is after the turn's other spans have ended."""

# -- attributes on every span ------------------------------------------------------------
CONVERSATION_ID: Final = "gen_ai.conversation.id"
SESSION_ID: Final = "session.id"

# -- GenAI attributes ---------------------------------------------------------------------
OPERATION: Final = "gen_ai.operation.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
AGENT_NAME: Final = "gen_ai.agent.name"
TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
OPENINFERENCE_KIND: Final = "openinference.span.kind"
"""What Phoenix draws a span as; it guesses from `gen_ai.*` where this is absent."""
CACHE_WRITE_TOKENS: Final = "gen_ai.usage.cache_write.input_tokens"
CACHE_CREATION_TOKENS: Final = "gen_ai.usage.cache_creation.input_tokens"
"""The name of `cache_write` until it was renamed; dashboards still read the one or the other."""
ERROR_TYPE: Final = "error.type"

# -- ours --------------------------------------------------------------------------------
REQUEST_ID: Final = "conserve.request.id"
"""The `x-request-id` of the client, or the one that the gateway gave it."""
TURN_INDEX: Final = "conserve.turn.index"
TURN_PATH: Final = "conserve.turn.path"
TURN_OUTCOME: Final = "conserve.turn.outcome"
TURN_STREAMED: Final = "conserve.turn.streamed"
TURN_TTFT_S: Final = "conserve.turn.ttft_s"
TURN_INPUT_TOKENS: Final = "conserve.usage.input_tokens"
TURN_OUTPUT_TOKENS: Final = "conserve.usage.output_tokens"
TURN_CACHE_READ_TOKENS: Final = "conserve.usage.cache_read.input_tokens"
"""The three of `gen_ai.usage.*` where the client's own span has those: dashboards add up all that have."""
TURN_PLACEMENTS: Final = "conserve.turn.placements"
"""Only where the turn was placed more than once, engines having failed it."""
REBIND_CAUSE: Final = "conserve.rebind.cause"
"""Only on a turn that bound its conversation once more: `engine-lost` and the like."""
PREFILLER: Final = "conserve.prefiller"
DECODER: Final = "conserve.decoder"
AGENT: Final = "conserve.agent.name"
"""Written by the SDK on every span of a conversation that has an agent; read here, never written."""
SYNTHETIC: Final = "conserve.conversation.synthetic"
TENANT: Final = "conserve.tenant"
"""Absent where no tenants are configured. Two tenants may use one conversation id."""
PARENT_CONVERSATION_ID: Final = "conserve.conversation.parent_id"
EMULATED: Final = "conserve.emulated"
CONVERSATION_ENDED_AS: Final = "conserve.conversation.ended_as"
CONVERSATION_TURNS: Final = "conserve.conversation.turns"
CONVERSATION_TOOL_CALLS: Final = "conserve.conversation.tool_calls"
CONVERSATION_TRANSFERS: Final = "conserve.conversation.kv_transfers"
CONVERSATION_REBINDS: Final = "conserve.conversation.rebinds"
CONVERSATION_E2E_S: Final = "conserve.conversation.e2e_s"
CONVERSATION_TTFET_S: Final = "conserve.conversation.ttfet_s"
CONVERSATION_LAST_TBT_S: Final = "conserve.conversation.last_turn_tbt_s"
CONVERSATION_CACHED_SHARE: Final = "conserve.conversation.cached_share"
CONVERSATION_PROMPT_TOKENS: Final = "conserve.conversation.prompt_tokens"
CONVERSATION_OUTPUT_TOKENS: Final = "conserve.conversation.output_tokens"
CONVERSATION_ENERGY_J: Final = "conserve.conversation.energy_j"
"""Joules; only where a meter is configured."""
CONVERSATION_BRANCHES: Final = "conserve.conversation.branches"
"""How many branches; it and the sums below only where there are any. A branch has a span of its own."""
WITH_BRANCHES: Final = "conserve.conversation.with_branches."
"""Before `turns`, `tool_calls`, `kv_transfers`, `rebinds`, `prompt_tokens`, `output_tokens`, `energy_j`."""
TRANSFER_OBSERVED_BY: Final = "conserve.transfer.observed_by"
"""`engine` where the engine's own per-request timing says when the KV was there, else
`first_token`, which is later than the end of the transfer."""
ENERGY_SOURCE: Final = "conserve.energy.source"
"""`measured`, `modelled` or `replayed`."""
ENERGY_J: Final = "conserve.energy.total_j"
ENERGY_PREFILL_J: Final = "conserve.energy.prefill_j"
ENERGY_TRANSFER_J: Final = "conserve.energy.transfer_j"
ENERGY_DECODE_J: Final = "conserve.energy.decode_j"
ENERGY_IDLE_J: Final = "conserve.energy.idle_j"
"""The idle devices' share, for the KV that the conversation held while the turn ran."""
