"""The table of frameworks in the SDK's page: each cell names a test that exists for that framework."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "sdk.md"
FILES = {
    "LangGraph": "test_langgraph.py",
    "LangChain `create_agent`": "test_langchain.py",
    "LangChain chat models": "test_langchain.py",
    "OpenAI Agents SDK": "test_openai_agents.py",
    "Pydantic AI": "test_pydantic_ai.py",
    "smolagents": "test_smolagents.py",
    "LiteLLM": "test_litellm.py",
}


def names_in(file: str) -> set[str]:
    tree = ast.parse((HERE / file).read_text())
    return {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


def rows() -> list[list[str]]:
    table = PAGE.read_text().partition("<!-- framework table -->")[2].partition("\n\n")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_each_cell_of_the_table_names_a_test_of_its_framework() -> None:
    head, _, *frameworks = rows()
    assert head[1:] == ["sync", "async", "stream", "tools", "parallel", "interrupt"]
    assert [row[0] for row in frameworks] == list(FILES)
    for framework, *cells in frameworks:
        known = names_in(FILES[framework])
        named = {name for cell in cells for name in re.findall(r"`(test_\w+)`", cell)}
        assert named <= known, framework
        assert all(cell == "has none" or cell.startswith("`test_") for cell in cells), framework
