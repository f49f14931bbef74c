"""The conversation that a request's headers name."""

from conserve_server.gateway.identity import read_identity


def test_our_header_wins_over_others() -> None:
    identity = read_identity({"x-session-id": "s", "x-conserve-conversation-id": "c"})
    assert (identity.conversation_id, identity.is_synthetic) == ("c", False)


def test_a_session_header_is_accepted() -> None:
    assert read_identity({"x-session-id": "s"}).conversation_id == "s"


def test_identifiers_are_cut_and_stripped_to_printable_ascii() -> None:
    identity = read_identity({"x-conserve-conversation-id": " a\x00b\n" + "x" * 999})
    assert identity.conversation_id.startswith("abx")
    assert len(identity.conversation_id) == 256


def test_without_an_identifier_a_synthetic_conversation_of_one_turn_is_made() -> None:
    first, second = read_identity({}), read_identity({})
    assert first.is_synthetic
    assert first.is_final
    assert first.conversation_id != second.conversation_id


def test_parent_agent_and_final_are_read() -> None:
    identity = read_identity(
        {
            "x-conserve-conversation-id": "c",
            "x-conserve-parent-id": "p",
            "x-conserve-agent": "coder",
            "x-conserve-final": "True",
        }
    )
    assert (identity.parent_id, identity.agent, identity.is_final) == ("p", "coder", True)
