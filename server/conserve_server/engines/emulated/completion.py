"""`/v1/completions` as vLLM speaks it."""

from __future__ import annotations

import time
from uuid import uuid4

from conserve_server.engines.emulated.answer import Ask, OutputToken
from conserve_server.engines.emulated.chat import json_schema
from conserve_server.engines.emulated.requests import CompletionRequest
from conserve_server.engines.emulated.sequence import Sequence
from conserve_server.engines.emulated.tokens import encode
from conserve_server.engines.emulated.wire import (
    FINGERPRINT,
    Document,
    Job,
    UnnamedEvents,
    output_limit,
    request_metrics,
    unknown_model,
    usage,
    validated,
    without_none,
)


class CompletionDialect(UnnamedEvents):
    """Reads text or token prompts, writes text completions."""

    def read(self, document: object, *, model: str, request_id: str | None, context_tokens: int) -> Job:
        request = validated(CompletionRequest, document)
        if request.model and request.model != model:
            raise unknown_model(request.model, model)
        given = request.only_prompt
        prompt = encode(given) if isinstance(given, str) else given
        options = request.stream_options
        ask = Ask(
            text=given if isinstance(given, str) else "",
            turn=1,
            max_tokens=output_limit(request, len(prompt), context_tokens),
            min_tokens=request.min_tokens,
            ignore_eos=request.ignore_eos,
            stops=request.stops,
            schema=json_schema(request.response_format),
            seed=sum(prompt),
        )
        return Job(
            id=f"cmpl-{request_id or request.request_id or uuid4().hex}",
            model=model,
            created=int(time.time()),
            prompt=prompt,
            ask=ask,
            is_stream=bool(request.stream),
            includes_usage=bool(options and options.include_usage),
            includes_running_usage=bool(options and options.include_usage and options.continuous_usage_stats),
            returns_token_ids=bool(request.return_token_ids),
            kv_params=request.kv_transfer_params or {},
            session=request.session_id,
            salt=request.cache_salt,
        )

    def opening(self, job: Job) -> list[Document]:  # noqa: ARG002
        return []

    def chunk(self, job: Job, sequence: Sequence, token: OutputToken, *, is_last: bool) -> list[Document]:
        is_first = sequence.answer.tokens[0] is token
        choice: Document = {
            "index": 0,
            "text": token.text,
            "logprobs": None,
            "finish_reason": sequence.answer.finish_reason if is_last else None,
            "stop_reason": sequence.answer.stop_reason if is_last else None,
            "prompt_token_ids": job.prompt if job.returns_token_ids and is_first else None,
            "token_ids": [token.id] if job.returns_token_ids else None,
        }
        chunk: Document = {**_head(job), "choices": [choice]}
        if is_last and not job.includes_usage:
            chunk["system_fingerprint"] = FINGERPRINT
        if job.includes_running_usage:
            chunk["usage"] = usage(sequence)
        return [chunk]

    def closing(self, job: Job, sequence: Sequence) -> list[Document]:
        return [self._usage_chunk(job, sequence)] if job.includes_usage else []

    def _usage_chunk(self, job: Job, sequence: Sequence) -> Document:
        return without_none(
            {
                **_head(job),
                "choices": [],
                "usage": {**usage(sequence), "prompt_tokens_details": _details(sequence)},
                "system_fingerprint": FINGERPRINT,
                "metrics": request_metrics(sequence),
            }
        )

    def whole(self, job: Job, sequence: Sequence) -> Document:
        answer = sequence.answer
        choice = {
            "index": 0,
            "text": "".join(token.text for token in answer.tokens),
            "logprobs": None,
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
            "token_ids": [token.id for token in answer.tokens] if job.returns_token_ids else None,
            "prompt_logprobs": None,
            "prompt_token_ids": job.prompt if job.returns_token_ids else None,
            "routed_experts": None,
        }
        details = {**_details(sequence), "created_cache_tokens": None, "multimodal_tokens": None}
        return {
            **_head(job),
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": {**usage(sequence), "prompt_tokens_details": details, "completion_tokens_details": None},
            "kv_transfer_params": sequence.transfer_params,
            "ec_transfer_params": None,
            "metrics": request_metrics(sequence),
        }


def _head(job: Job) -> Document:
    return {"id": job.id, "object": "text_completion", "created": job.created, "model": job.model}


def _details(sequence: Sequence) -> Document:
    return {"cached_tokens": sequence.cached_tokens}
