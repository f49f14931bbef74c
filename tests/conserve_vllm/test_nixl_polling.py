"""NIXL's progress thread told to wait, on a stand-in for its binding."""

import pytest

from conserve_vllm.nixl_polling import POLL_US, patient, poll_patiently, poll_us


class AgentConfig:
    """What NIXL's binding has: plain attributes."""

    pthrDelay = 5  # noqa: N815 - NIXL's name
    lthrDelay = 5  # noqa: N815


def test_a_time_out_of_zero_becomes_the_asked_one() -> None:
    config = patient(AgentConfig, 1000)()
    config.pthrDelay = 0
    config.lthrDelay = 0
    assert (config.pthrDelay, config.lthrDelay) == (1000, 0)


def test_a_time_out_that_nixl_was_given_on_purpose_is_kept() -> None:
    config = patient(AgentConfig, 1000)()
    config.pthrDelay = 250
    assert config.pthrDelay == 250


def test_a_binding_that_has_changed_is_refused_by_name() -> None:
    with pytest.raises(AttributeError, match="pthrDelay"):
        patient(type("Changed", (), {}), 1000)


def test_unset_means_leave_nixl_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(POLL_US, raising=False)
    assert poll_us() is None


@pytest.mark.parametrize("text", ["0", "-5", "soon"])
def test_what_is_no_positive_number_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(POLL_US, text)
    with pytest.raises(ValueError, match=r"0|soon"):
        poll_us()


def test_without_nixl_nothing_happens() -> None:
    assert poll_patiently(1000) is False
