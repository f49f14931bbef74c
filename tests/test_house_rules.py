"""The house rules that a machine can check: sizes, prints, attribute names, what a file may speak of."""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("conserve_sdk", "server", "integrations")
PROGRAMS = ("examples", "bench", "tools")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
NAMES = "server/conserve_server/telemetry/names.py"
# Keys of an ASGI scope and groups of entry points have dots too.
SCOPE_KEYS = frozenset({"conserve.transport", "conserve.policies"})
# A file name such as conserve.toml is no attribute.
ATTRIBUTE = re.compile(r"(gen_ai|conserve)\.(?!toml$|jsonl?$)[a-z_][a-z0-9_.]*")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*folders: str) -> list[pathlib.Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def long_functions(source: str) -> Iterator[str]:
    """Functions whose body without its docstring is longer than allowed."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function) and _body_lines(node) > MAX_FUNCTION_LINES:
            yield node.name


def _body_lines(function: Function) -> int:
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def prints(source: str) -> list[int]:
    """The lines that call `print`, except those that say that another process reads them."""
    lines = source.splitlines()
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        if not re.search(r"# noqa: T201 .* reads it$", lines[node.lineno - 1])
    ]


def attribute_names(source: str) -> list[str]:
    """String literals that are the name of an attribute of a span or a metric."""
    return [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and ATTRIBUTE.fullmatch(node.value)
        if node.value not in SCOPE_KEYS
    ]


def test_files_and_functions_fit_their_limits() -> None:
    texts = {relative(path): path.read_text() for path in sources(*PACKAGES, *PROGRAMS, "tests")}
    long_files = [name for name, text in texts.items() if len(text.splitlines()) > MAX_FILE_LINES]
    long_ones = [f"{name}: {function}" for name, text in texts.items() for function in long_functions(text)]
    assert (long_files, long_ones) == ([], [])


def test_only_programs_print() -> None:
    found = {
        relative(path): prints(path.read_text()) for path in sources(*PACKAGES) if "cli" not in path.parts
    }
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_the_server_writes_attribute_names_in_one_module_only() -> None:
    found = {relative(path): attribute_names(path.read_text()) for path in sources("server")}
    assert found.pop(NAMES)
    assert {name: literals for name, literals in found.items() if literals} == {}


def test_a_function_is_measured_without_its_docstring() -> None:
    docstring = '"""' + "words\n" * 60 + '"""'
    assert list(long_functions(f"def short():\n {docstring}\n return 1")) == []
    assert list(long_functions("async def long():\n" + " pass\n" * 51)) == ["long"]
    assert list(long_functions("def fits():\n" + " pass\n" * 50)) == []


def test_a_print_is_found_and_a_method_of_that_name_is_not() -> None:
    assert prints("def f():\n print(1)\nconsole.print(2)") == [2]


def test_a_print_for_another_process_says_who_reads_it() -> None:
    assert prints("print(1)  # noqa: T201  the launcher reads it") == []
    assert prints("print(1)  # noqa: T201") == [1]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = 'gen_ai.usage.input_tokens'", ["gen_ai.usage.input_tokens"]),
        ("f({'conserve.turn.index': 1})", ["conserve.turn.index"]),
        ("path = 'conserve.toml'", []),
        ("'''See conserve.turn, the span.'''", []),
        ("import conserve_server.core", []),
    ],
)
def test_an_attribute_name_is_told_from_other_text(source: str, found: list[str]) -> None:
    assert attribute_names(source) == found


def test_nothing_that_is_made_here_is_kept_under_version_control() -> None:
    """An environment that is a link is no folder: a rule for folders alone lets it in."""
    rules = (ROOT / ".gitignore").read_text().splitlines()
    assert {".venv", ".venv-*"} <= {*rules}
