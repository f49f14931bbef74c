"""`/tokenize` and `/detokenize`, as far as an emulated tokenizer can: pieces have numbers and no way back."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from conserve_server.engines.emulated.config import EmulatedConfig
from conserve_server.engines.emulated.tokens import encode
from conserve_server.engines.emulated.wire import WireError, parse_body


def tokenize_routes(config: EmulatedConfig) -> list[Route]:
    """Both routes."""

    async def tokenize(request: Request) -> Response:
        try:
            tokens = encode(_text(parse_body(await request.body())))
        except WireError as error:
            return error.response({"error": {"message": str(error), "type": error.kind}})
        found = {"count": len(tokens), "max_model_len": config.context_tokens, "tokens": tokens}
        return JSONResponse(found)

    async def detokenize(request: Request) -> Response:
        try:
            document = parse_body(await request.body())
        except WireError as error:
            return error.response({"error": {"message": str(error), "type": error.kind}})
        tokens = document.get("tokens") if isinstance(document, dict) else None
        found = tokens if isinstance(tokens, list) else []
        return JSONResponse({"prompt": " ".join(f"<{token}>" for token in found)})

    return [
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
    ]


def _text(document: Any) -> str:
    """What is to be tokenised: a prompt, or a chat's texts."""
    given = document if isinstance(document, dict) else {}
    messages = given.get("messages")
    texts = (
        [str(m.get("content")) for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
    )
    return str(given.get("prompt") or "\n".join(texts))
