"""The conversation that a request's headers and fields name."""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from conserve_sdk.protocol import MAX_ID_LENGTH, clean_id
from conserve_server.serving.asked.identity import (
    ID_HEADERS,
    MAX_FIELD_BYTES,
    Identity,
    read_identity,
    read_previous_response,
    tenant_of,
)


def identity_of(
    headers: Mapping[str, str] | None = None,
    fields: Mapping[str, object] | None = None,
    *,
    tenant: str = "t",
    model: str = "m",
) -> Identity:
    raw = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in (fields or {}).items()}
    return read_identity(headers or {}, raw, tenant=tenant, model=model)


@pytest.mark.parametrize("first", range(len(ID_HEADERS)))
def test_headers_win_in_the_documented_order_and_before_any_field(first: int) -> None:
    headers = {name: name + "-value" for name in ID_HEADERS[first:]}
    assert identity_of(headers, {"session_id": "field"}).conversation_id == ID_HEADERS[first] + "-value"


FIELDS: dict[str, object] = {
    "metadata": {"conversation_id": "metadata-conversation", "session_id": "metadata-session"},
    "conversation": {"id": "responses-conversation"},
    "prompt_cache_key": "cache-key",
    "session_id": "vllm-session",
}
VALUES = ("metadata-conversation", "responses-conversation", "cache-key", "vllm-session")


@pytest.mark.parametrize("first", range(len(FIELDS)))
def test_fields_win_in_the_documented_order(first: int) -> None:
    fields = dict(list(FIELDS.items())[first:])
    identity = identity_of(None, fields)
    assert (identity.conversation_id, identity.is_synthetic) == (VALUES[first], False)


def test_a_session_in_the_metadata_counts_where_no_conversation_does() -> None:
    assert identity_of(None, {"metadata": {"session_id": "s", "other": 1}}).conversation_id == "s"


def test_a_conversation_may_be_a_string() -> None:
    assert identity_of(None, {"conversation": "c"}).conversation_id == "c"


@pytest.mark.parametrize("odd", [None, 3, [], {}, {"id": 3}, "", " \n", "\u200e"])
@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_holds_no_identifier_names_nothing(name: str, odd: object) -> None:
    assert identity_of(None, {name: odd}).is_synthetic


def test_a_field_too_long_for_an_identifier_names_nothing() -> None:
    assert identity_of(None, {"session_id": "x" * MAX_FIELD_BYTES}).is_synthetic


def test_the_previous_response_is_read() -> None:
    assert read_previous_response({"previous_response_id": msgspec.Raw(b'"resp_1"')}) == "resp_1"
    assert read_previous_response({}) is None


def latin(text: str) -> str:
    """A header's text as servers give it: its UTF-8, byte for byte."""
    return text.encode().decode("latin-1")


def test_what_cannot_be_printed_is_no_part_of_an_identifier() -> None:
    assert identity_of({"x-session-id": " a\x00b\n\x7f\x1b[0m "}).conversation_id == "ab[0m"
    assert identity_of({"x-session-id": latin("a\u202eb\u2028c")}).conversation_id == "abc"


@pytest.mark.parametrize("name", ["客户-1", "顧客-1", "مشتری\u200cها", "👩\u200d🚀", "é", "Ж 1", "100 %"])
def test_an_identifier_in_any_script_is_kept_as_given(name: str) -> None:
    assert identity_of({"x-session-id": latin(name)}).conversation_id == name
    assert identity_of(None, {"session_id": name}).conversation_id == name


def test_a_header_that_is_no_utf8_is_read_as_latin1() -> None:
    assert identity_of({"x-session-id": "caf\xe9"}).conversation_id == "café"


@given(st.text(), st.text())
def test_identifiers_that_differ_in_print_stay_apart(one: str, other: str) -> None:
    identities = [identity_of(None, {"session_id": text}) for text in (one, other)]
    assume(not any(identity.is_synthetic for identity in identities))
    ids = [identity.conversation_id for identity in identities]
    sessions = [identity.engine_session for identity in identities]
    assert (sessions[0] == sessions[1]) == (ids[0] == ids[1])
    assert all(session.isascii() and session.isprintable() for session in sessions)
    assert all(clean_id(each) == each for each in ids)


@pytest.mark.parametrize("name", ["session-id", "session_id"])
def test_each_thread_of_codex_is_a_branch_of_its_session(name: str) -> None:
    first = identity_of({name: "s", "thread-id": "s"})
    helper = identity_of({name: "s", "thread-id": "t"})
    assert (first.conversation_id, first.branch_of) == ("s", None)
    assert (helper.conversation_id, helper.branch_of) == ("s/t", "s")
    assert identity_of({name: "s"}).conversation_id == "s"


def test_a_thread_of_others_is_no_branch() -> None:
    assert identity_of({"x-session-id": "s", "thread-id": "t"}).branch_of is None


def test_two_long_identifiers_stay_two() -> None:
    one, other = (identity_of({"x-session-id": "x" * 999 + end}).conversation_id for end in "ab")
    assert one != other
    assert len(one) == len(other) == MAX_ID_LENGTH
    assert identity_of({"x-session-id": one}).conversation_id == one


def test_without_an_identifier_a_synthetic_one_is_made() -> None:
    first, second = identity_of(), identity_of()
    assert first.is_synthetic
    assert first.conversation_id != second.conversation_id


def test_parent_agent_and_final_are_read() -> None:
    identity = identity_of(
        {
            "x-conserve-conversation-id": "c",
            "x-conserve-parent-id": "p",
            "x-conserve-agent": "coder",
            "x-conserve-final": "True",
        }
    )
    assert (identity.parent_id, identity.agent, identity.is_final) == ("p", "coder", True)


def test_dynamos_parent_and_final_are_read() -> None:
    identity = identity_of(
        {
            "x-dynamo-session-id": "c",
            "x-dynamo-parent-session-id": "p",
            "x-dynamo-session-final": "true",
        }
    )
    assert (identity.conversation_id, identity.parent_id, identity.is_final) == ("c", "p", True)


def test_each_agent_of_a_claude_code_session_is_a_child() -> None:
    session = {"x-claude-code-session-id": "s"}
    main = identity_of(session)
    agents = [identity_of({**session, "x-claude-code-agent-id": name}) for name in ("a", "b")]
    assert [agent.conversation_id for agent in agents] == ["s/a", "s/b"]
    assert {agent.parent_id for agent in agents} == {main.conversation_id} == {"s"}
    assert len({main.key, *(agent.key for agent in agents)}) == 3


def test_an_agent_id_means_nothing_where_another_header_names_the_conversation() -> None:
    identity = identity_of({"x-session-id": "c", "x-claude-code-agent-id": "a"})
    assert (identity.conversation_id, identity.branch_of) == ("c", None)


def test_a_branch_is_a_child_whatever_names_the_conversation() -> None:
    identity = identity_of({"x-conserve-branch": "sub:1"}, {"session_id": "c"})
    assert (identity.conversation_id, identity.branch_of, identity.parent_id) == ("c/sub:1", "c", "c")


def test_a_branch_of_nothing_is_no_branch() -> None:
    assert identity_of({"x-conserve-branch": "sub:1"}).branch_of is None


def test_two_long_branches_of_one_conversation_stay_two() -> None:
    one, other = (
        identity_of({"x-session-id": "c" * 200, "x-conserve-branch": "b" * 200 + end}) for end in "12"
    )
    assert one.conversation_id != other.conversation_id


def test_the_key_tells_tenants_and_models_apart() -> None:
    named = {"x-session-id": "c"}
    keys = {identity_of(named, tenant=t, model=m).key for t in ("t", "u") for m in ("m", "n")}
    assert len(keys) == 4
    assert {tenant_of(key) for key in keys} == {"t", "u"}


def test_no_choice_of_model_and_identifier_makes_two_keys_one() -> None:
    one = identity_of({"x-session-id": "c"}, model="d\ne")
    other = identity_of({"x-session-id": "c\nd"}, model="e")
    assert one.key != other.key


def test_engines_are_told_of_a_tenants_own_session() -> None:
    named = {"x-session-id": "c"}
    assert identity_of(named, tenant="default").engine_session == "c"
    assert identity_of(named, tenant="t").engine_session == "t:c"
