"""The prepared models, read by the libraries that vLLM reads them with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.real

Chat = dict[str, Any]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL_TEXT = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "ü"}}\n</tool_call>'
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "ü"}}}
ANSWERS: list[tuple[Chat, str]] = [
    ({"role": "assistant", "content": " Two words. \n"}, " Two words. \n"),
    ({"role": "assistant", "content": None, "tool_calls": [CALL]}, CALL_TEXT),
    (
        {"role": "assistant", "content": "Both:\n", "tool_calls": [CALL, CALL]},
        f"Both:\n{CALL_TEXT}\n{CALL_TEXT}",
    ),
]
"""Messages as a client sends them back, each with what the model had written."""


@pytest.fixture(scope="module")
def folder(vllm_python: str) -> str:
    """The tiny model's folder: same tokenizer and chat template as the small model's."""
    command = [sys.executable, "-m", "conserve_server.cli.main", "models", "--prepare", "tiny-random"]
    made = subprocess.run([*command, "--python", vllm_python], capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def rendered(python: str, folder: str, *chats: Chat) -> dict[str, list[Any]]:
    asked = json.dumps({"folder": folder, "chats": chats})
    program = str(Path(__file__).parent / "render_chat.py")
    made = subprocess.run([python, program], input=asked, capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
    answer: dict[str, list[Any]] = json.loads(made.stdout)
    return answer


@pytest.mark.parametrize("tools", [None, [TOOL]])
@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_each_turns_prompt_and_answer_is_a_prefix_of_the_next_turns_prompt(
    vllm_python: str, folder: str, tools: list[Chat] | None, system: list[Chat]
) -> None:
    messages: list[Chat] = [*system, {"role": "user", "content": "First?"}]
    chats: list[Chat] = []
    for answer, _ in ANSWERS:
        chats.append({"messages": messages, "tools": tools, "generate": True})
        tail: list[Chat] = [{"role": "tool", "tool_call_id": "call_1", "content": "3"}] * len(
            answer.get("tool_calls", ())
        )
        messages = [*messages, answer, *tail, {"role": "user", "content": "And then?"}]
    chats.append({"messages": messages, "tools": tools, "generate": True})
    prompts = rendered(vllm_python, folder, *chats)["prompts"]
    for before, (_, text), after in zip(prompts, ANSWERS, prompts[1:], strict=False):
        assert after.startswith(before + text + "<|im_end|>")


def test_tools_and_their_results_reach_the_prompt(vllm_python: str, folder: str) -> None:
    messages = [
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "the sum is 3"},
    ]
    (prompt,) = rendered(vllm_python, folder, {"messages": messages, "tools": [TOOL], "generate": True})[
        "prompts"
    ]
    assert '"name": "add"' in prompt.partition("<|im_end|>")[0]
    assert "<|im_start|>tool\n<tool_response>\nthe sum is 3\n</tool_response><|im_end|>" in prompt
    assert prompt.endswith("<|im_start|>assistant\n")


def test_numbers_are_split_into_digits_as_the_model_was_trained(vllm_python: str, folder: str) -> None:
    messages = [{"role": "user", "content": "2026"}]
    (tokens,) = rendered(vllm_python, folder, {"messages": messages, "generate": False})["tokens"]
    assert [token for token in tokens if token.isdigit()] == ["2", "0", "2", "6"]
