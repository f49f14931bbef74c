"""API keys and whose they are."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Any

import pytest

from conserve_server.core.config import GatewayConfig, parse_config
from conserve_server.core.errors import ConfigError, Unauthorized
from conserve_server.serving.asked.tenants import Caller, Tenants

SECRET = "sk-very-secret"


def gateway_config(**gateway: Any) -> GatewayConfig:
    pools = {"decode": {"engines": ["http://10.0.0.1:1"]}}
    return parse_config({"gateway": gateway, "pools": pools}).gateway


def tenants(environment: dict[str, str] | None = None, **gateway: Any) -> Tenants:
    return Tenants.from_config(gateway_config(**gateway), environment or {})


def two_tenants(**gateway: Any) -> Tenants:
    return tenants(tenants={"a": {"api_keys": [SECRET, "a2"]}, "b": {"api_keys": ["b1"]}}, **gateway)


def bearer(key: str) -> str:
    return f"Bearer {key}"


def test_a_key_is_its_tenants() -> None:
    found = two_tenants()
    assert [found.caller(bearer(key)).tenant for key in (SECRET, "a2", "b1")] == ["a", "a", "b"]


def test_the_scheme_may_be_written_in_any_case() -> None:
    assert two_tenants().caller("bearer  b1 ").tenant == "b"


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "missing_api_key"),
        ("Bearer wrong", "invalid_api_key"),
        ("Bearer ", "invalid_api_key"),
        ("", "invalid_api_key"),
        ("b1", "invalid_api_key"),
        ("Basic b1", "invalid_api_key"),
        ("Bearer b1 b1", "invalid_api_key"),
        ("Bearer é\udc80", "invalid_api_key"),
    ],
)
def test_without_a_known_key_it_is_a_401_that_names_the_header(authorization: str | None, code: str) -> None:
    with pytest.raises(Unauthorized, match="Authorization: Bearer") as raised:
        two_tenants().caller(authorization)
    assert (raised.value.status, raised.value.code) == (401, code)
    assert "wrong" not in str(raised.value)


def test_without_tenants_everybody_is_the_default_tenant() -> None:
    for authorization in (None, "Bearer anything", "odd"):
        assert tenants().caller(authorization) == Caller("default")


def test_the_admin_key_belongs_to_no_tenant_and_sends_no_turns() -> None:
    admin = two_tenants(admin_key="root").caller(bearer("root"))
    assert (admin.tenant, admin.is_admin) == (None, True)
    with pytest.raises(Unauthorized) as raised:
        admin.turn_tenant()
    assert raised.value.status == 403


def test_without_tenants_the_admin_sends_turns_like_everybody() -> None:
    assert tenants(admin_key="root").caller(bearer("root")).turn_tenant() == "default"


def test_the_environments_admin_key_wins() -> None:
    found = tenants({"CONSERVE_ADMIN_KEY": "from-env"}, admin_key="from-file")
    assert found.is_admin(bearer("from-env"))
    assert not found.is_admin(bearer("from-file"))


def test_every_key_is_compared_in_constant_time_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def counted(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    two_tenants().caller(bearer(SECRET))
    assert compared == [(32, 32)] * 3


def test_keys_are_read_from_a_file_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of team a\nk1\n\n  k2  # the second\nk#3\n")
    found = tenants(tenants={"a": {"api_keys_file": str(file)}})
    assert [found.caller(bearer(key)).tenant for key in ("k1", "k2", "k#3")] == ["a"] * 3
    with pytest.raises(Unauthorized):
        found.caller(bearer("k"))


@pytest.mark.parametrize("text", [None, "", "# nothing\n"])
def test_a_file_without_keys_is_refused_by_its_setting(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=r"gateway\.tenants\.a\.api_keys_file"):
        tenants(tenants={"a": {"api_keys_file": str(file)}})


@pytest.mark.parametrize(
    ("gateway", "named"),
    [
        ({"tenants": {"a": {"api_keys": [SECRET]}, "b": {"api_keys": [SECRET]}}}, "tenants.b.api_keys"),
        ({"tenants": {"a": {"api_keys": [SECRET]}}, "admin_key": SECRET}, "gateway.admin_key"),
        ({"tenants": {"a": {"api_keys": [SECRET + " x"]}}}, "tenants.a.api_keys"),
        ({"tenants": {"a": {"api_keys": [""]}}}, "tenants.a.api_keys"),
        ({"tenants": {"a": {}}}, "gateway.tenants.a"),
        ({"tenants": {"default": {"api_keys": [SECRET]}}}, "gateway.tenants.default"),
        ({"tenants": {"a/b": {"api_keys": [SECRET]}}}, "gateway.tenants.a/b"),
        ({"tenants": {"a": {"api_keys": SECRET}}}, "gateway.tenants.a.api_keys"),
        ({"tenants": {"a": {"api_keys": [SECRET], "keys": [SECRET]}}}, "gateway.tenants.a.keys"),
        ({"metrics_need_admin_key": True}, "gateway.metrics_need_admin_key"),
    ],
)
def test_wrong_settings_are_named_and_no_key_is_told(gateway: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as raised:
        tenants(**gateway)
    assert named in str(raised.value)
    shown = f"{raised.value!r} {raised.value.__cause__}"
    assert SECRET not in shown


def test_no_representation_of_the_configuration_shows_a_key() -> None:
    gateway = gateway_config(tenants={"a": {"api_keys": [SECRET]}}, admin_key=SECRET + "2")
    shown = f"{gateway!r} {gateway.model_dump()} {vars(Tenants.from_config(gateway, {}))}"
    assert SECRET not in shown
