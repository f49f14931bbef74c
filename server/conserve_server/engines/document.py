"""Documents that engines answer with: read whole, within a limit, and decoded without trust."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from conserve_server.core.errors import EngineFailed
from conserve_server.engines.engine import Answer

T = TypeVar("T")

MAX_LOOK_BYTES: Final = 8 * 1024 * 1024
"""Of each page that is read at a look: vLLM's metrics are 0.2 MB."""
MAX_DOCUMENT_BYTES: Final = 64 * 1024 * 1024
"""Of any other answer that is read whole."""


async def read_whole(answer: Answer, engine: str, limit_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
    """The answer's body. Raises EngineFailed where it is longer, without reading the rest."""
    content = bytearray()
    async for chunk in answer.chunks():
        content += chunk
        if len(content) > limit_bytes:
            message = f"engine {engine} answers with more than {limit_bytes} bytes"
            raise EngineFailed(message, code="engine_protocol", engine=engine)
    return bytes(content)


def decoded(body: bytes, kind: type[T]) -> T:
    """The JSON document as `kind`. Raises ValueError for anything else, however odd it is."""
    try:
        return msgspec.json.decode(body, type=kind)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
