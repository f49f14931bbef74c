"""Salts: whose cached prompts a tenant finds."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from conserve_server.core.config import GatewayConfig, TenantConfig
from conserve_server.core.errors import InvalidRequest
from conserve_server.serving.asked.cache_salts import MAX_SALT_CHARACTERS, CacheSalts

NAMES = st.text("abAB01._-", min_size=1, max_size=4)
OWN = st.none() | st.text(min_size=1, max_size=6)


def salt(salts: CacheSalts, tenant: str, own: str | None = None) -> str:
    given = None if own is None else msgspec.Raw(json.dumps(own).encode())
    text: str = msgspec.json.decode(salts.of(tenant, given))
    return text


def gateway(**changes: object) -> GatewayConfig:
    return GatewayConfig.model_validate(
        {"tenants": {n: TenantConfig(api_keys=(SecretStr(f"sk-{n}"),)) for n in "ab"}, **changes}
    )


@given(st.tuples(NAMES, OWN), st.tuples(NAMES, OWN))
def test_two_tenants_never_have_one_salt_whatever_they_send(
    one: tuple[str, str | None], other: tuple[str, str | None]
) -> None:
    salts = CacheSalts({})
    assert (salt(salts, *one) == salt(salts, *other)) == (one == other)


@given(NAMES, OWN)
def test_a_salt_is_the_same_in_every_process_and_vllm_takes_it(tenant: str, own: str | None) -> None:
    found = salt(CacheSalts({}, "s"), tenant, own)
    assert found == salt(CacheSalts({}, "s"), tenant, own)
    assert 0 < len(found) <= MAX_SALT_CHARACTERS
    assert found.isalnum()


def test_what_one_tenant_gets_as_its_salt_is_of_no_use_to_another() -> None:
    salts = CacheSalts({})
    assert salt(salts, "b", salt(salts, "a")) != salt(salts, "a")


def test_tenants_of_one_group_share_and_a_group_is_no_tenant_of_its_name() -> None:
    salts = CacheSalts({"a": "c", "b": "c"})
    assert salt(salts, "a") == salt(salts, "b") != salt(salts, "c")
    assert salt(salts, "a", "x") == salt(salts, "b", "x") != salt(salts, "a")


def test_a_secret_changes_every_salt() -> None:
    assert salt(CacheSalts({}, "one"), "a") != salt(CacheSalts({}, "two"), "a") != salt(CacheSalts({}), "a")


def test_the_configuration_names_secret_and_groups() -> None:
    own = TenantConfig(api_keys=(SecretStr("sk-c"),), cache_group="c")
    salts = CacheSalts.from_config(gateway(cache_salt_secret=SecretStr("s"), tenants={"a": own}))
    assert salts is not None
    assert salt(salts, "a") == salt(CacheSalts({"a": "c"}, "s"), "a")


def test_nobody_is_kept_apart_where_no_tenants_are_configured() -> None:
    assert CacheSalts.from_config(GatewayConfig()) is None


@pytest.mark.parametrize("raw", [b"1", b'""', b"[]", b'"' + b"x" * 129 + b'"'])
def test_a_salt_that_vllm_refuses_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="cache_salt is wrong") as raised:
        CacheSalts({}).of("a", msgspec.Raw(raw))
    assert raised.value.param == "cache_salt"


def test_null_is_no_salt() -> None:
    salts = CacheSalts({})
    assert salts.of("a", msgspec.Raw(b"null")) == salts.of("a", None)
