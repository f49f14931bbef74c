"""The fake driver: a small C library under the real NVML binding, told by files what GPUs draw."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")
LIBRARY = "libnvidia-ml.so.1"


@dataclass(frozen=True)
class FakeDriver:
    """A folder with the built library, the file of its GPUs and those of their energy."""

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to run on it."""
        return {
            "LD_LIBRARY_PATH": str(self.folder),
            "FAKE_NVML": str(self.folder / "gpus"),
            "FAKE_NVML_ENERGY": str(self.folder / "energy"),
        }

    def gpus(self, *lines: str) -> None:
        """One line a GPU: idle watts, watts, flags (`-` for none), a name if another."""
        replace(self.folder / "gpus", "\n".join(lines) + "\n")

    def energy(self, index: int, joules: float) -> None:
        """What the GPU has drawn so far."""
        replace(self.folder / "energy" / str(index), str(round(joules * 1000)))

    def build(self) -> None:
        (self.folder / "energy").mkdir(parents=True, exist_ok=True)
        command = ("cc", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}", "-o", LIBRARY, str(SOURCE))
        subprocess.run(command, cwd=self.folder, check=True, timeout=60)


def replace(path: Path, text: str) -> None:
    """At once, so that a reader never sees half of it."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


@pytest.fixture(scope="session")
def built_driver(tmp_path_factory: pytest.TempPathFactory) -> FakeDriver:
    driver = FakeDriver(tmp_path_factory.mktemp("nvml"))
    driver.build()
    return driver


@pytest.fixture
def driver(built_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """The fake driver loaded into this process: the binding then finds it by its name."""
    ctypes.CDLL(str(built_driver.folder / LIBRARY), mode=ctypes.RTLD_GLOBAL)
    for name, value in built_driver.env.items():
        monkeypatch.setenv(name, value)
    for old in (built_driver.folder / "energy").iterdir():
        old.unlink()
    built_driver.gpus("75 400 -")
    return built_driver


@pytest.fixture
def fake_gpus(driver: FakeDriver) -> Sequence[str]:
    """Two GPUs with counters that the test writes."""
    driver.gpus("75 400 -", "75 300 -")
    driver.energy(0, 1000.0)
    driver.energy(1, 2000.0)
    return ("0", "1")
