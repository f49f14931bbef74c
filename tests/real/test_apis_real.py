"""Responses and Messages on real vLLM with real NIXL: both legs, pinning, stored answers, counts."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from conserve_sdk.protocol import ConversationReport
from conserve_server.engines.engine import Role
from conserve_server.engines.vllm_metrics import REQUESTS, TRANSFERS, total
from tests.real.cluster import RealCluster, gateway_over

pytestmark = pytest.mark.real

TEXT = "The ferry sails fourteen times a day and carries two hundred passengers. " * 10
ANSWER_TOKENS = 12
LIMIT_S = 120.0


@dataclass
class Gateway:
    """The gateway process over the real engines, with both vendors' own clients."""

    cluster: RealCluster
    client: httpx2.AsyncClient
    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic

    async def report(self, conversation: str) -> ConversationReport:
        response = await self.client.get(f"/v1/conversations/{conversation}")
        return ConversationReport.from_json(response.json())

    async def counts(self) -> tuple[int, int]:
        """KV transfers that the decoders count, and requests that the prefillers count."""
        found = {}
        for role, metric in ((Role.DECODE, TRANSFERS), (Role.PREFILL, REQUESTS)):
            urls = [spec.url for spec in self.cluster.engines.specs if spec.role is role]
            pages = [(await self.client.get(url + "/metrics")).text for url in urls]
            found[role] = int(sum(total(page, metric) for page in pages))
        return found[Role.DECODE], found[Role.PREFILL]


@pytest.fixture
async def gateway(real_cluster: RealCluster, tmp_path: Path) -> AsyncIterator[Gateway]:
    async with (
        gateway_over(real_cluster.engines, tmp_path) as url,
        httpx2.AsyncClient(base_url=url, timeout=LIMIT_S) as client,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as of_openai,
        anthropic.AsyncAnthropic(base_url=url, api_key="-", max_retries=0) as of_anthropic,
    ):
        yield Gateway(real_cluster, client, of_openai, of_anthropic)


def fresh(name: str) -> str:
    """A conversation id of this run alone: the engines outlive a test."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


async def responded(gateway: Gateway, is_streamed: bool, conversation: str, **fields: Any) -> Any:
    """A greedy answer of the Responses API."""
    fields = {"model": gateway.cluster.model, "max_output_tokens": ANSWER_TOKENS, "temperature": 0, **fields}
    fields["extra_headers"] = {"x-conserve-conversation-id": conversation}
    if not is_streamed:
        return await gateway.openai.responses.create(**fields)
    events = [event async for event in await gateway.openai.responses.create(**fields, stream=True)]
    return events[-1].response


async def messaged(gateway: Gateway, is_streamed: bool, conversation: str, messages: list[Any]) -> Any:
    """A greedy answer of the Messages API."""
    fields: dict[str, Any] = {
        "model": gateway.cluster.model,
        "max_tokens": ANSWER_TOKENS,
        "messages": messages,
        "extra_body": {"temperature": 0},
        "extra_headers": {"x-claude-code-session-id": conversation},
    }
    if not is_streamed:
        return await gateway.anthropic.messages.create(**fields)
    async with gateway.anthropic.messages.stream(**fields) as stream:
        return await stream.get_final_message()


def check(report: ConversationReport, before: tuple[int, int], after: tuple[int, int]) -> None:
    """One prefill elsewhere, one transfer, then the same decoder with the context in its cache."""
    assert [turn.path for turn in report.turns] == ["remote-prefill", "pinned"]
    assert (len(report.decoders), report.kv_transfers) == (1, 1)
    assert (after[0] - before[0], after[1] - before[1]) == (1, 1)
    first, second = report.turns
    assert first.prompt_tokens is not None
    assert second.cached_tokens is not None
    assert second.cached_tokens >= first.prompt_tokens - 32
    assert second.completion_tokens == ANSWER_TOKENS


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
async def test_responses_go_through_both_legs_and_stay_with_the_stored_answer(
    gateway: Gateway, is_streamed: bool
) -> None:
    conversation, before = fresh("responses"), await gateway.counts()
    first = await responded(gateway, is_streamed, conversation, input=TEXT)
    second = await responded(
        gateway, is_streamed, conversation, input="And then?", previous_response_id=first.id
    )
    check(await gateway.report(conversation), before, await gateway.counts())
    assert (await gateway.openai.responses.retrieve(second.id)).output_text == second.output_text


async def test_a_response_alone_leads_to_its_conversation(gateway: Gateway) -> None:
    fields: dict[str, Any] = {"model": gateway.cluster.model, "max_output_tokens": ANSWER_TOKENS}
    before = await gateway.counts()
    first = await gateway.openai.responses.with_raw_response.create(**fields, input=TEXT)
    await gateway.openai.responses.create(**fields, input="And then?", previous_response_id=first.parse().id)
    report = await gateway.report(first.headers["x-conserve-conversation-id"])
    check(report, before, await gateway.counts())


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
async def test_messages_go_through_both_legs_and_stay(gateway: Gateway, is_streamed: bool) -> None:
    conversation, before = fresh("messages"), await gateway.counts()
    messages: list[Any] = [{"role": "user", "content": TEXT}]
    answer = await messaged(gateway, is_streamed, conversation, messages)
    assert answer.usage.output_tokens == ANSWER_TOKENS
    messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": "And then?"}]
    await messaged(gateway, is_streamed, conversation, messages)
    check(await gateway.report(conversation), before, await gateway.counts())


async def test_both_apis_say_what_one_engine_alone_says(gateway: Gateway) -> None:
    alone = gateway.cluster.reference_url
    async with (
        openai.AsyncOpenAI(base_url=f"{alone}/v1", api_key="-", max_retries=0) as of_openai,
        anthropic.AsyncAnthropic(base_url=alone, api_key="-", max_retries=0) as of_anthropic,
    ):
        reference = Gateway(gateway.cluster, gateway.client, of_openai, of_anthropic)
        messages: list[Any] = [{"role": "user", "content": TEXT}]
        for is_streamed in (False, True):
            found = [
                (
                    (await responded(each, is_streamed, fresh("same"), input=TEXT)).output_text,
                    (await messaged(each, is_streamed, fresh("same"), messages)).content[0].text,
                )
                for each in (gateway, reference)
            ]
            assert found[0] == found[1]


async def test_tokens_are_counted(gateway: Gateway) -> None:
    counted = await gateway.anthropic.messages.count_tokens(
        model=gateway.cluster.model, messages=[{"role": "user", "content": TEXT}]
    )
    assert counted.input_tokens > 100


async def test_errors_have_each_apis_shape(gateway: Gateway) -> None:
    with pytest.raises(openai.NotFoundError, match="send the whole input"):
        await gateway.openai.responses.create(
            model=gateway.cluster.model, input="a", previous_response_id="resp_unknown"
        )
    with pytest.raises(anthropic.BadRequestError) as found:
        await gateway.anthropic.messages.create(
            model=gateway.cluster.model, max_tokens=10, messages=[{"role": "user", "content": TEXT * 100}]
        )
    body: Any = found.value.body
    assert body["type"] == "error"
