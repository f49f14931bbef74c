"""No file imports itself by way of others: what is read first can be read alone."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterable, Mapping

import pytest

from tests.test_layers import imports, modules


def imported_by(module: str, source: str, known: frozenset[str], *, is_package: bool) -> set[str]:
    """The modules of ours that it imports, wherever in it; a package counts as its `__init__`."""
    tree = ast.parse(source)
    named = imports(module, tree, is_package=is_package)
    found = {each if each in known else each.rpartition(".")[0] for each in named}
    return {each for each in found if each in known and each != module}


def cycle_of(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """The modules of one cycle, if there is any."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_no_file_imports_itself_by_way_of_others() -> None:
    sources = [
        (name, path.read_text(), path.name == "__init__.py")
        for name, path in modules()
        if not name.startswith("examples")
    ]
    known = frozenset(name for name, _, _ in sources)
    graph = {
        name: imported_by(name, source, known, is_package=is_package) for name, source, is_package in sources
    }
    assert cycle_of(graph) == []


@pytest.mark.parametrize(
    ("graph", "has_one"),
    [
        ({"a": ["b"], "b": ["a"]}, True),
        ({"a": ["b"], "b": ["c"], "c": ["a"]}, True),
        ({"a": ["b", "c"], "b": ["c"]}, False),
    ],
)
def test_a_cycle_is_found(graph: dict[str, list[str]], has_one: bool) -> None:
    assert bool(cycle_of(graph)) is has_one
