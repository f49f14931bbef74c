"""The record tells `conserve serve` what runs, and never what no longer does."""

from __future__ import annotations

from pathlib import Path

import pytest

from conserve_server.core.config import Config, parse_config
from conserve_server.core.errors import ConfigError
from conserve_server.engines.engine import EngineSpec, Role
from conserve_server.engines.pool_record import claimed, read_record, write_record

ENGINES = (
    EngineSpec("prefill-0", Role.PREFILL, "http://127.0.0.1:8100"),
    EngineSpec("decode-0", Role.DECODE, "http://127.0.0.1:8101"),
)


def config(folder: Path, model: str = "small") -> Config:
    return parse_config(
        {"model": model, "pools": {"decode": {"count": 1}}, "launcher": {"run_dir": str(folder / "run")}}
    )


def test_the_engines_are_read_as_they_were_written(tmp_path: Path) -> None:
    with claimed(config(tmp_path)):
        write_record(config(tmp_path), ENGINES, {"prefill-0": 11, "decode-0": 12})
        assert read_record(config(tmp_path)) == ENGINES


def test_without_engines_the_fix_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="start them with conserve up"):
        read_record(config(tmp_path))


def test_engines_that_are_not_ready_yet_are_to_be_waited_for(tmp_path: Path) -> None:
    with claimed(config(tmp_path)), pytest.raises(ConfigError, match="wait until conserve up says"):
        read_record(config(tmp_path))


def test_a_record_whose_launcher_was_killed_is_not_believed(tmp_path: Path) -> None:
    with claimed(config(tmp_path)):
        write_record(config(tmp_path), ENGINES, {})
        left = (tmp_path / "run" / "pool.json").read_text()
    (tmp_path / "run" / "pool.json").write_text(left)
    with pytest.raises(ConfigError, match="no engines run from"):
        read_record(config(tmp_path))
    with claimed(config(tmp_path)), pytest.raises(ConfigError, match="not ready"):
        read_record(config(tmp_path))


def test_engines_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    with claimed(config(tmp_path, model="large")):
        write_record(config(tmp_path, model="large"), ENGINES, {})
        with pytest.raises(ConfigError, match="serve large, the configuration says small"):
            read_record(config(tmp_path))


def test_the_record_goes_with_its_launcher(tmp_path: Path) -> None:
    with claimed(config(tmp_path)) as run_dir:
        write_record(config(tmp_path), ENGINES, {})
    assert sorted(path.name for path in run_dir.iterdir()) == ["logs", "pool.lock"]


def test_a_run_directory_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with (
        pytest.raises(ConfigError, match=r"launcher\.run_dir: .*run can't be written to"),
        claimed(config(tmp_path)),
    ):
        pytest.fail("a file was claimed as a directory")
