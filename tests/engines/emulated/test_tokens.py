"""The tokenizer and the chat template keep prefixes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from conserve_server.engines.emulated.answer import Ask, plan_answer
from conserve_server.engines.emulated.requests import Message
from conserve_server.engines.emulated.script import Rule, ScriptedCall
from conserve_server.engines.emulated.tokens import END, encode, encode_chat, pieces


@given(st.text())
def test_pieces_join_to_the_text_and_are_short(text: str) -> None:
    assert "".join(pieces(text)) == text
    assert all(len(piece.strip()) <= 4 and len(piece) <= 7 for piece in pieces(text))


@given(st.text(), st.data())
def test_a_text_cut_between_pieces_keeps_its_tokens(text: str, data: st.DataObject) -> None:
    whole = pieces(text)
    kept = data.draw(st.integers(0, len(whole)))
    assert encode("".join(whole[:kept])) == encode(text)[:kept]


@given(reply=st.text(min_size=1), max_tokens=st.integers(1, 40))
def test_the_next_prompt_starts_with_the_last_prompt_and_answer(reply: str, max_tokens: int) -> None:
    asked = [Message(role="system", content="be brief"), Message(role="user", content="hello")]
    prompt = encode_chat(asked, ())
    answer = plan_answer(Ask(text="hello", turn=1, max_tokens=max_tokens), (Rule(reply=reply),), 32)
    said = Message(role="assistant", content="".join(token.text for token in answer.tokens))

    following = encode_chat([*asked, said, Message(role="user", content="and?")], ())

    answered = [token.id for token in answer.tokens if token.id != END]
    assert following[: len(prompt) + len(answered)] == prompt + answered


def test_a_tool_call_keeps_its_tokens_however_the_client_spaces_its_arguments() -> None:
    asked = [Message(role="user", content="hello")]
    rule = Rule(tool_calls=(ScriptedCall("search", {"query": "é", "limit": 3}),))
    ask = Ask(text="hello", turn=1, max_tokens=100, tools=(("search", {}),))
    answered = [token.id for token in plan_answer(ask, (rule,), 32).tokens]
    called = Message.model_validate(
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "function": {"name": "search", "arguments": '{"query":"\\u00e9","limit":3}'}}
            ],
        }
    )

    following = encode_chat([*asked, called], ())

    assert following[:-1] == encode_chat(asked, ()) + answered
