"""The wheel, built and installed alone: what a user of the SDK gets, and nothing more."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from dataclasses import dataclass

import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = {
    "conserve_sdk": ROOT / "conserve_sdk",
    "conserve_server": ROOT / "server" / "conserve_server",
    "conserve_vllm": ROOT / "server" / "conserve_vllm",
    "conserve_integrations": ROOT / "integrations" / "conserve_integrations",
}


@dataclass(frozen=True)
class Installed:
    """A clean environment that holds the wheel and its base dependencies."""

    bin: pathlib.Path
    work: pathlib.Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run one of the environment's programs, away from the checkout."""
        return subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.work,
            env={"PATH": str(self.bin), "HOME": str(self.work), "LANG": "C.UTF-8"},
        )

    def python(self, program: str) -> str:
        """What `program` prints."""
        answer = self.run("python", "-c", program)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    home = tmp_path_factory.mktemp("environment")
    venv.create(home / "venv", with_pip=True)
    install = [str(home / "venv" / "bin" / "python"), "-m", "pip", "install", "--quiet", str(wheel)]
    subprocess.run(install, check=True, timeout=600)
    (home / "work").mkdir()
    return Installed(home / "venv" / "bin", home / "work")


def server_dependencies() -> set[str]:
    """The import names of what only the `server` extra brings."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return {re.split(r"[^\w-]", need, maxsplit=1)[0].replace("-", "_") for need in extras["server"]}


def test_every_file_of_the_packages_is_in_the_wheel(wheel: pathlib.Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert any(name.endswith(".jinja") for name in wanted)
    assert {f"{name}/py.typed" for name in PACKAGES} <= wanted
    assert wanted <= held
    assert {name.split("/")[0] for name in held if ".dist-info/" not in name} == set(PACKAGES)


def test_the_sdk_alone_brings_no_server_dependency(installed: Installed) -> None:
    names = sorted(server_dependencies())
    assert {"aiohttp", "starlette", "msgspec", "pydantic"} <= set(names)
    program = f"""
import importlib.util, conserve_sdk
print(*(name for name in {names} if importlib.util.find_spec(name)))
"""
    assert installed.python(program).split() == []


def test_the_version_is_the_packages_own(installed: Installed, wheel: pathlib.Path) -> None:
    version = installed.python(
        "import conserve_sdk, importlib.metadata as m;"
        "assert m.version('conserve-sdk') == conserve_sdk.__version__; print(conserve_sdk.__version__)"
    ).strip()
    assert f"-{version}-" in wheel.name


@pytest.mark.parametrize("command", [("conserve",), ("conserve", "trace"), ("conserve", "serve")])
def test_help_needs_no_extra(installed: Installed, command: tuple[str, ...]) -> None:
    answer = installed.run(*command, "--help")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("usage: " + " ".join(command))


def test_a_conversation_is_recorded_and_shown_without_an_extra(installed: Installed) -> None:
    assert installed.run("conserve", "trace").returncode == 1
    installed.python("""
from conserve_server.telemetry.provider import tracing
recorded = tracing("agent")
recorded.tracer.start_span("chat m", attributes={"gen_ai.conversation.id": "conv-1"}).end()
assert recorded.shutdown()
""")
    answer = installed.run("conserve", "trace", "conv")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("conversation conv-1\n")


@pytest.mark.parametrize("command", ["serve", "up"])
def test_what_needs_the_server_extra_says_how_to_get_it(installed: Installed, command: str) -> None:
    answer = installed.run("conserve", command, "x.toml")
    assert answer.returncode == 2
    assert "server extra" in answer.stderr
    assert "conserve-sdk[server]" in answer.stderr
    assert "Traceback" not in answer.stderr
