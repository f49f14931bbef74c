"""Real coding sessions: Claude Code's, as numbers (from github.com/callanjfox/kv-cache-tester, Apache-2.0).

One session a line: `session`, `shared_prefix_tokens` (its tools and system prompt, common to many)
and `turns`, each with `input_tokens` (the whole context), `appended_tokens` (null: the history was
rewritten), `output_tokens`, `gap_s` (null: unknown) and `after` (`tool` or `user`).
"""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Sequence

import msgspec

from ..workload import ConversationShape
from .reading import Seconds, Tokens, data_file, json_lines
from .recorded import RecordedRequest, turns_of

_FILE = "coding_sessions.jsonl.gz"
_PREFIX = "claude-code"


class _Turn(msgspec.Struct):
    input_tokens: Tokens
    appended_tokens: Tokens | None
    output_tokens: Tokens
    gap_s: Seconds | None


class _Session(msgspec.Struct):
    session: str
    shared_prefix_tokens: Tokens
    turns: list[_Turn]


def coding_sessions(
    path: pathlib.Path | None = None, *, shares_prefix: bool = True
) -> list[ConversationShape]:
    """The sessions in the file's order; from the data folder where no path is given.

    An unknown gap is taken as the session's median. With `shares_prefix` all sessions begin with the
    same tools and system prompt, as one version of one agent does; without it none share anything.
    """
    sessions = (session for _, session in json_lines(path or data_file(_FILE), _Session))
    return [_conversation(each, shares_prefix=shares_prefix) for each in sessions if each.turns]


def _conversation(session: _Session, *, shares_prefix: bool) -> ConversationShape:
    usual_s = _median_gap_s(session.turns)
    prefix = session.shared_prefix_tokens
    requests = [
        RecordedRequest(
            turn.input_tokens,
            turn.output_tokens,
            usual_s if turn.gap_s is None else turn.gap_s,
            prefix if turn.appended_tokens is None else None,
        )
        for turn in session.turns
    ]
    turns = turns_of(requests, rewritten_from=prefix)
    if not shares_prefix:
        return ConversationShape(session.session, turns)
    return ConversationShape(session.session, turns, _PREFIX, min(prefix, turns[0].appended_tokens))


def _median_gap_s(turns: Sequence[_Turn]) -> float:
    known = [turn.gap_s for turn in turns[1:] if turn.gap_s is not None]
    return statistics.median(known) if known else 0.0
