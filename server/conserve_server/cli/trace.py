"""`conserve trace`: where a conversation's time went, read from the trace folder."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conserve_server.telemetry.conversations import ConversationLine

_HOW = (
    "the gateway and the SDK write there as conversations go on, unless a collector is configured "
    "(OTEL_EXPORTER_OTLP_ENDPOINT); --dir reads another folder"
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `trace` to the console script's subcommands."""
    parser = subparsers.add_parser(
        "trace",
        help="show where a conversation's time went",
        description="List the conversations in the trace folder, or draw the timeline of one.",
    )
    parser.add_argument("conversation", nargs="?", help="its id, or how it begins; without it: the list")
    parser.add_argument(
        "--dir",
        type=pathlib.Path,
        help="the trace folder (default: $CONSERVE_TRACE_DIR, else ~/.local/state/conserve/traces)",
    )
    parser.add_argument(
        "--last",
        type=_at_least_one,
        metavar="N",
        help="the last N conversations of the list (default: 20), or of the timeline's turns",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON instead of text")
    how.add_argument(
        "--follow", "-f", action="store_true", help="draw anew as spans are written, until interrupted"
    )
    how.add_argument(
        "--perfetto",
        type=pathlib.Path,
        metavar="FILE",
        help="write a trace for ui.perfetto.dev or Chrome's viewer: of the conversation, or of the last N",
    )


def run(args: argparse.Namespace) -> int:
    """Print the list or the timeline. Raises ConserveError where there is nothing to show."""
    from conserve_sdk.protocol import trace_dir

    folder = args.dir if args.dir is not None else trace_dir()
    if args.follow:
        _follow(folder, args.conversation, last=args.last)
    elif args.perfetto is not None:
        _write_perfetto(folder, args.conversation, args.perfetto, last=args.last or 20)
    elif args.conversation is None:
        _print_list(folder, last=args.last or 20, as_json=args.json)
    else:
        _print_timeline(folder, args.conversation, last=args.last, as_json=args.json)
    return 0


def _print_list(folder: pathlib.Path, *, last: int, as_json: bool) -> None:
    from dataclasses import asdict

    from rich.console import Console

    from conserve_server.telemetry.render import conversations_view

    lines = _lines(folder)
    if as_json:
        _print_json([asdict(line) for line in lines[:last]])
        return
    Console().print(conversations_view(lines[:last], [line.id for line in lines]))
    if len(lines) > last:
        print(f"({last} of {len(lines)} conversations; --last N shows more)")


def _print_timeline(folder: pathlib.Path, wanted: str, *, last: int | None, as_json: bool) -> None:
    from dataclasses import asdict

    from rich.console import Console

    from conserve_server.telemetry.conversations import find_conversation
    from conserve_server.telemetry.render import timeline_view
    from conserve_server.telemetry.spans_file import read_spans
    from conserve_server.telemetry.timeline import timeline

    conversation_id = find_conversation(wanted, [line.id for line in _lines(folder)])
    spans = read_spans(folder, conversation_id=conversation_id)
    found = timeline(conversation_id, spans)
    if as_json:
        figures = {"duration_s": found.duration_s, "ttfet_s": found.ttfet_s, "decoders": found.decoders}
        _print_json({**asdict(found), **figures, "kv_transfers": found.kv_transfers})
        return
    console = Console()
    console.print(timeline_view(found, console.width, last=last))


def _follow(folder: pathlib.Path, wanted: str | None, *, last: int | None) -> None:
    import time

    from rich.console import Console

    from conserve_server.cli.trace_follow import FollowedList, FollowedTimeline, follow
    from conserve_server.telemetry.conversations import find_conversation

    if wanted is None:
        follow(FollowedList(folder, last=last or 20), Console(), wait=time.sleep)
        return
    conversation_id = find_conversation(wanted, [line.id for line in _lines(folder)])
    follow(FollowedTimeline(folder, conversation_id, last=last), Console(), wait=time.sleep)


def _write_perfetto(folder: pathlib.Path, wanted: str | None, to: pathlib.Path, *, last: int) -> None:
    import json

    from conserve_server.core.errors import ConserveError
    from conserve_server.telemetry.conversations import find_conversation
    from conserve_server.telemetry.perfetto import trace_events
    from conserve_server.telemetry.spans_file import read_spans
    from conserve_server.telemetry.timeline import timeline

    ids = [line.id for line in _lines(folder)]
    chosen = ids[:last] if wanted is None else [find_conversation(wanted, ids)]
    timelines = [timeline(each, read_spans(folder, conversation_id=each)) for each in chosen]
    try:
        to.write_text(json.dumps(trace_events(timelines)))
    except OSError as error:
        raise ConserveError(f"can't write {to}: {error.strerror}; name another file") from error
    conversations = "1 conversation" if len(chosen) == 1 else f"{len(chosen)} conversations"
    print(f"{to}: {conversations}; open it at https://ui.perfetto.dev or in chrome://tracing")


def _lines(folder: pathlib.Path) -> list[ConversationLine]:
    """The folder's conversations, the latest first. Raises ConserveError where there are none."""
    from conserve_server.core.errors import ConserveError
    from conserve_server.telemetry.conversations import conversation_lines
    from conserve_server.telemetry.spans_file import read_spans

    if not folder.is_dir():
        raise ConserveError(f"no trace folder {folder}: {_HOW}")
    lines = conversation_lines(read_spans(folder))
    if not lines:
        raise ConserveError(f"no conversation in {folder}: {_HOW}")
    return lines


def _print_json(document: object) -> None:
    import json

    print(json.dumps(document, indent=2))


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number
