"""Every code block of the README and the docs: Python runs, commands parse, configurations load."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from conserve_server.cli.main import _parser as command_line
from conserve_server.core.config import parse_config
from tests.gateway.conftest import MODEL
from tests.test_docs import ADDRESS, PAGE_MODEL, ROOT, blocks, gateway_in_thread, python_alone, run

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
OUTPUT = {"text", "json"}
"""What is shown and not run: what a program printed, a file tree, a body."""
LANGUAGES = {"python", "sh", "toml", *OUTPUT}
POOLS = {"pools": {"decode": {"engines": ["http://10.0.0.6:8000"]}}}
"""What a part of a configuration is shown without."""
OTHERS = {"cd", "curl", "docker", "export", "git", "pip", "vllm"}
"""Commands of others that a reader is told to type."""

VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*=")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def pages(language: str) -> list[Path]:
    return [path for path in PAGES if blocks(path.read_text(), language)]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_block_says_what_it_is(path: Path) -> None:
    fences = re.findall(r"^```(.*)$", path.read_text(), re.MULTILINE)
    assert set(fences[::2]) <= LANGUAGES
    assert set(fences[1::2]) <= {""}


@pytest.mark.slow
@pytest.mark.parametrize("path", pages("python"), ids=name)
def test_the_python_of_a_page_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    program = tmp_path / path.name
    env = {"CONSERVE_TRACE_DIR": str(tmp_path), "CONSERVE_DISABLED": "", "CONSERVE_ALLOWED_HOSTS": ""}
    with gateway_in_thread() as url:
        text = python_alone(path.read_text()).replace("http://localhost:8000", ADDRESS)
        program.write_text(text.replace(ADDRESS, url).replace(PAGE_MODEL, MODEL))
        run([sys.executable, "-W", "error", str(program)], env)


@pytest.mark.parametrize("path", [p for p in pages("toml") if p.name != "engines.md"], ids=name)
def test_every_configuration_can_be_used_or_is_shown_with_its_error(path: Path) -> None:
    found = blocks(path.read_text(), "toml", "text")
    for block, following in zip(found, [*found[1:], None], strict=True):
        is_refused = following is not None and following.text.startswith("conserve serve: ")
        if block.language == "toml" and not is_refused:
            parse_config(POOLS | tomllib.loads(block.text))


def commands(path: Path) -> Iterator[list[str]]:
    for block in blocks(path.read_text(), "sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = [word for word in shlex.split(line, comments=True) if not VARIABLE.match(word)]
            if words:
                yield words


@pytest.mark.parametrize("path", [p for p in pages("sh") if p.name != "gateway.md"], ids=name)
def test_every_command_is_one_that_there_is(path: Path) -> None:
    """Ours parse, make's targets and scripts exist; `gateway.md` is all curl, and runs."""
    targets = set(re.findall(r"^([a-z][\w -]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    known = {target for line in targets for target in line.split()}
    for words in commands(path):
        match words:
            case ["conserve", *arguments]:
                command_line().parse_args(arguments)
            case ["make", *arguments]:
                assert {a for a in arguments if "=" not in a} <= known
            case ["python" | "python3", "-m", module, *_]:
                assert find_spec(module) is not None, module
            case ["python" | "python3", script, *_]:
                assert (ROOT / script).is_file(), script
            case [first, *_]:
                assert first in OTHERS, words
