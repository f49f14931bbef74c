"""Request bodies of the two generating routes, as far as the emulated engine reads them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow")


class StreamOptions(_Body):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class FunctionCall(_Body):
    name: str
    arguments: str = ""


class ToolCall(_Body):
    id: str | None = None
    function: FunctionCall


class Message(_Body):
    """One message of a chat; parts that are not text have no tokens here."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[ToolCall] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(str(part.get("text", "")) for part in self.content)
        return self.content or ""


class Function(_Body):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(_Body):
    type: Literal["function"] = "function"
    function: Function


class NamedFunction(_Body):
    name: str


class NamedToolChoice(_Body):
    function: NamedFunction


class JsonSchemaFormat(_Body):
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class ResponseFormat(_Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


_NOT_EMULATED = ("logprobs", "prompt_logprobs", "echo", "use_beam_search", "structured_outputs", "best_of")


class GenerationRequest(_Body):
    """What chat and text completions share."""

    model: str | None = None
    request_id: str | None = None
    session_id: str | None = None
    cache_salt: str | None = None
    priority: int = 0
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: str | list[str] | None = None
    n: int | None = 1
    response_format: ResponseFormat | None = None
    return_token_ids: bool | None = None
    kv_transfer_params: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _is_supported(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("Stream options can only be defined when `stream=True`.")
        given = self.model_extra or {}
        asked = [name for name in _NOT_EMULATED if given.get(name)]
        if asked or (self.n or 1) != 1:
            named = ", ".join(asked) or f"n={self.n}"
            raise ValueError(
                f"the emulated engine doesn't emulate {named}: leave it out, or use a real engine"
            )
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)


class ChatRequest(GenerationRequest):
    messages: list[Message] = Field(min_length=1)
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = True
    max_completion_tokens: int | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


_TokenId = Annotated[int, Field(ge=0, lt=1 << 20)]


class CompletionRequest(GenerationRequest):
    prompt: str | list[_TokenId] | list[str] | list[list[_TokenId]]
    max_tokens: int | None = 16

    @model_validator(mode="after")
    def _has_one_prompt(self) -> Self:
        if len(self._prompts()) != 1:
            raise ValueError(f"the emulated engine takes one prompt a request, got {len(self._prompts())}")
        return self

    @property
    def only_prompt(self) -> str | list[int]:
        return self._prompts()[0]

    def _prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [token for token in self.prompt if isinstance(token, int)]
        return [ids] if ids else [each for each in self.prompt if not isinstance(each, int)]
