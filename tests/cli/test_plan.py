from __future__ import annotations

import json
import pathlib
import re
import tomllib

import pytest

from conserve_server.cli.main import main
from conserve_server.cli.plan import offers_of
from conserve_server.core.config import parse_config
from conserve_server.core.errors import ConfigError
from conserve_server.simulation.plans import Offer

QUESTION = ["plan", "tool-chat", "--rate", "1", "--conversations", "10", "--processes", "1"]


def test_an_offer_names_a_gpu_how_many_the_price_and_caps() -> None:
    assert offers_of("H100:8:2.5") == [Offer("h100", 8, 2.5)]
    capped = offers_of("h100@fitted.json:8:2.5:700,500")
    assert [each.cap_w for each in capped] == [700.0, 500.0]
    assert capped[0].timing_file == pathlib.Path("fitted.json")


@pytest.mark.parametrize("text", ["h100", "h100:0:2", "h100:x:2", ":4:2", "h100:4:2:hot", "h100:4:2:700:1"])
def test_an_offer_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--gpu must be NAME"):
        offers_of(text)


def test_an_unknown_gpu_is_refused_before_the_search(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUESTION, "--gpu", "h900:2:1"]) == 2
    assert "nothing is known of the watts of 'h900'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_plan_is_printed_and_its_configuration_written(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, output = tmp_path / "plan.toml", tmp_path / "plan.json"
    arguments = [*QUESTION, "--gpu", "h100:2:2.5", "--config", str(config), "--output", str(output)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    found = re.search(r"cheapest:     (\w+: 1 x h100.*): 2\.50 an hour", printed)
    assert found is not None  # one engine; which policy takes fewer joules there is the simulator's to say
    assert parse_config(tomllib.loads(config.read_text())).pools.decode.count == 1
    assert json.loads(output.read_text())["frontier"] == [found[1]]


@pytest.mark.slow
def test_objectives_that_nothing_meets_fail_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUESTION, "--gpu", "h100:1:2.5", "--gap", "0.000001"]) == 1
    assert "meets the objectives; nearest: " in capsys.readouterr().out
