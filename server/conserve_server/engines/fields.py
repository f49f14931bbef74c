"""What becomes of each field of a client's body on its way to an engine: the one table of it.

Ordinary fields (what the model reads, how it samples, what the answer shows) pass. Fields that direct
the engine are listed by name, each with what becomes of it. A field in neither list is dropped: what
this version of vLLM ignores, the next one may obey. `tests/engines/vllm_fields.json` has the fields of
vLLM's own request models, so that a new one is noticed.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from conserve_server.engines.wire import CHAT_PATH, COMPLETIONS_PATH, MESSAGES_PATH, RESPONSES_PATH

COUNT_TOKENS_PATH: Final = MESSAGES_PATH + "/count_tokens"
TOKENIZE_PATH: Final = "/tokenize"
DETOKENIZE_PATH: Final = "/detokenize"


class Handling(StrEnum):
    """What becomes of a field that directs the engine."""

    DROPPED = "dropped"
    """It never reaches an engine, and no setting lets it."""
    REPLACED = "replaced"
    """The gateway puts its own in its place where it has one."""
    ALLOWED = "dropped unless `gateway.passed_fields` names it"
    FILTERED = "only the entries named here or in `gateway.passed_vllm_xargs`"


DIRECTING: Final = {
    "kv_transfer_params": Handling.REPLACED,  # addresses that the engine connects to
    "ec_transfer_params": Handling.DROPPED,  # the same for encoder caches
    "request_id": Handling.DROPPED,  # under it vLLM stores an answer of the Responses API
    "session_id": Handling.DROPPED,  # would win over the session that the gateway names
    "priority": Handling.ALLOWED,
    "cache_salt": Handling.REPLACED,
    "vllm_xargs": Handling.FILTERED,
}
"""The fields that direct the engine, on every route."""

XARGS: Final = frozenset(
    {
        "ngram_size",
        "window_size",
        "whitelist_token_ids",  # DeepSeek-OCR's sampling
        "diffusion_seed_canvas",
        "diffusion_pinned",
        "diffusion_max_steps",
        "diffusion_read_only",
        "diffusion_constrained",
    }
)
"""Entries of `vllm_xargs` that vLLM's own models read when they sample."""


def _names(*texts: str) -> frozenset[str]:
    return frozenset(" ".join(texts).split())


_SAMPLING: Final = """
    model stream user temperature top_p top_k min_p seed stop stop_token_ids ignore_eos logit_bias
    presence_penalty frequency_penalty repetition_penalty skip_special_tokens spaces_between_special_tokens
    include_stop_str_in_output structured_outputs watermarking mm_payload return_mm_kwargs
"""
_COMPLETIONS: Final = """
    add_special_tokens allowed_token_ids bad_words echo length_penalty logprob_token_ids logprobs max_tokens
    min_tokens n prompt_logprobs repetition_detection response_format return_token_ids return_token_offsets
    return_tokens_as_token_ids return_weight_versions routed_experts_prompt_start stream_interval
    stream_options thinking_token_budget truncate_prompt_tokens truncation_side use_beam_search
"""
_TEMPLATE: Final = "messages tools chat_template chat_template_kwargs media_io_kwargs mm_processor_kwargs"
_IGNORED: Final = """
    metadata service_tier store prompt_cache_key prompt_cache_options prompt_cache_retention safety_identifier
    best_of conversation guided_json guided_regex guided_choice guided_grammar guided_decoding_backend
    guided_whitespace_pattern
"""
"""What vLLM ignores (some with a warning in its log) and clients commonly send: it passes, so that their
bodies go on byte for byte."""

PASSED: Final = {
    CHAT_PATH: _names(
        _SAMPLING,
        _COMPLETIONS,
        _TEMPLATE,
        _IGNORED,
        "tool_choice parallel_tool_calls reasoning_effort include_reasoning max_completion_tokens",
        "top_logprobs documents add_generation_prompt continue_final_message return_prompt_text",
        "modalities audio prediction verbosity functions function_call web_search_options",  # ignored
    ),
    COMPLETIONS_PATH: _names(_SAMPLING, _COMPLETIONS, _IGNORED, "prompt prompt_embeds suffix"),
    RESPONSES_PATH: _names(
        _SAMPLING,
        _IGNORED,
        "input instructions previous_response_id previous_input_messages prompt include reasoning text",
        "include_reasoning tools tool_choice parallel_tool_calls max_output_tokens max_tool_calls",
        "top_logprobs truncation background chat_template_kwargs media_io_kwargs mm_processor_kwargs",
        "enable_response_messages",
    ),
    MESSAGES_PATH: _names(
        "model messages system max_tokens metadata stop_sequences stream temperature top_k top_p thinking",
        "tools tool_choice output_config chat_template_kwargs watermarking mm_payload return_mm_kwargs",
        "service_tier betas container context_management",  # ignored
    ),
    COUNT_TOKENS_PATH: _names(
        "model messages system thinking tools tool_choice output_config chat_template_kwargs",
        "betas context_management",  # ignored
    ),
    TOKENIZE_PATH: _names(
        "model prompt", _TEMPLATE, "add_generation_prompt continue_final_message add_special_tokens"
    )
    | {"return_token_strs"},
    DETOKENIZE_PATH: _names("model tokens"),
}
"""The fields that pass as they are, by route."""
