"""Lists the fields of vLLM's own request models, read from its source: `vllm_fields.py VERSION=FOLDER …`.

FOLDER holds the package `vllm`, installed or unpacked from a wheel. Prints the document that
`tests/engines/vllm_fields.json` is: by version and route, the names that a body may have.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Final

MODELS: Final = {
    "/v1/chat/completions": ("openai/chat_completion/protocol.py", "ChatCompletionRequest"),
    "/v1/completions": ("openai/completion/protocol.py", "CompletionRequest"),
    "/v1/responses": ("openai/responses/protocol.py", "ResponsesRequest"),
    "/v1/messages": ("anthropic/protocol.py", "AnthropicMessagesRequest"),
    "/v1/messages/count_tokens": ("anthropic/protocol.py", "AnthropicCountTokensRequest"),
    "/tokenize": ("serve/tokenize/protocol.py", "TokenizeCompletionRequest", "TokenizeChatRequest"),
    "/detokenize": ("serve/tokenize/protocol.py", "DetokenizeRequest"),
}
"""Where a route's request models are, below `vllm/entrypoints`, in vLLM 0.31 to 0.33."""
_BASES: Final = {"BaseModel", "OpenAIBaseModel"}


def fields_of(folder: Path) -> dict[str, list[str]]:
    """The fields of each route's models. Raises KeyError for a model that is not there any more."""
    found: dict[str, list[str]] = {}
    for route, (file, *models) in MODELS.items():
        classes = _classes(folder / "vllm" / "entrypoints" / file)
        found[route] = sorted({name for model in models for name in _fields(classes, model)})
    return found


def _classes(path: Path) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)}


def _fields(classes: dict[str, ast.ClassDef], name: str) -> set[str]:
    """Annotated names of the class and of its bases. A base of another file must be known to have none."""
    if name in _BASES:
        return set()
    own = {
        node.target.id
        for node in classes[name].body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id[0] != "_"
    }
    inherited = [_fields(classes, base.id) for base in classes[name].bases if isinstance(base, ast.Name)]
    return own.union(*inherited)


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    document = {version: fields_of(Path(folder)) for version, folder in sorted(given.items())}
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
