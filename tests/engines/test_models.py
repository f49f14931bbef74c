"""Models are prepared once, whole or not at all, by one process at a time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from conserve_server.core.errors import ConfigError, EngineStartError
from conserve_server.engines.models import KNOWN, find_model, is_prepared, model_folder, prepare_model
from conserve_server.engines.progress import Progress
from tests.processes import eventually


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "conserve" / "models"


def left_in(cache: Path) -> list[str]:
    """What lies in the cache, locks aside."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


@pytest.mark.slow
async def test_a_known_model_is_prepared_once_in_the_users_cache(
    fake_python: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CONVERSIONS", str(tmp_path / "conversions"))
    heard: list[Progress] = []
    for _ in range(2):
        model = await prepare_model("smollm2-135m", python=fake_python, report=heard.append)
        assert model.source == str(model_folder("smollm2-135m"))
        assert model.is_folder
    assert (tmp_path / "conversions").read_text() == "one\n"
    assert left_in(cache) == [model_folder("smollm2-135m").name]
    assert ("preparing", "converting for show") in [(p.state, p.detail) for p in heard]
    assert heard[-1].state == "ready"


@pytest.mark.slow
async def test_preparations_at_once_convert_once(
    fake_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CONVERSIONS", str(tmp_path / "conversions"))
    await asyncio.gather(*(prepare_model("tiny-random", python=fake_python) for _ in range(3)))
    assert (tmp_path / "conversions").read_text() == "one\n"


@pytest.mark.slow
async def test_a_preparation_that_fails_says_why_and_leaves_nothing(
    fake_python: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CONVERT", "fails")
    with pytest.raises(EngineStartError, match="model tiny-random can't be prepared") as refusal:
        await prepare_model("tiny-random", python=fake_python)
    assert str(refusal.value).endswith("the weights are not there")
    assert left_in(cache) == []
    assert not is_prepared("tiny-random")


@pytest.mark.slow
async def test_a_preparation_that_is_cancelled_leaves_nothing(
    fake_python: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CONVERT", "hangs")
    heard: list[Progress] = []
    preparing = asyncio.create_task(prepare_model("tiny-random", python=fake_python, report=heard.append))
    await eventually(lambda: "converting for show" in [p.detail for p in heard], "the conversion to start")
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preparing
    assert left_in(cache) == []


@pytest.mark.slow
async def test_the_wait_for_another_preparation_is_bounded(
    fake_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CONVERT", "hangs")
    heard: list[Progress] = []
    first = asyncio.create_task(prepare_model("tiny-random", python=fake_python, report=heard.append))
    await eventually(lambda: "converting for show" in [p.detail for p in heard], "the conversion to start")
    with pytest.raises(EngineStartError, match="was not ready after"):
        await prepare_model("tiny-random", python=fake_python, timeout_s=0.1)
    first.cancel()
    await asyncio.wait({first})


@pytest.mark.slow
async def test_what_a_killed_preparation_left_is_cleared(fake_python: str, cache: Path) -> None:
    left = cache / f"{model_folder('tiny-random').name}.x1.part"
    left.mkdir(parents=True)
    await prepare_model("tiny-random", python=fake_python)
    assert left_in(cache) == [model_folder("tiny-random").name]


def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    model = find_model(str(tmp_path))
    assert (model.source, model.is_folder, model.flags) == (str(tmp_path), True, ())


def test_a_hub_id_is_left_to_the_engine() -> None:
    model = find_model("Qwen/Qwen3-0.6B")
    assert (model.source, model.is_folder) == ("Qwen/Qwen3-0.6B", False)


@pytest.mark.parametrize("name", ["smollm3", "/nowhere/model", "./model", "../models/small", "a/b/c"])
def test_a_name_that_is_nothing_is_refused_with_what_is_known(name: str) -> None:
    with pytest.raises(ConfigError, match="is no folder and no known model") as refusal:
        find_model(name)
    assert all(known in str(refusal.value) for known in KNOWN)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        find_model(str(tmp_path))
