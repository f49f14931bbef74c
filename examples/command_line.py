"""The examples' command line: where the gateway is, and one JSON line for each conversation."""

import argparse
import json


def agent_arguments(description: str | None) -> argparse.Namespace:
    """`--base-url`, `--model` and `--conversations`."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1", help="the gateway, with /v1")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--conversations", type=int, default=1, help="how many to run")
    return parser.parse_args()


def print_result(conversation_id: str, answer: object) -> None:
    """One line that a program can read: `{"conversation": …, "answer": …}`."""
    print(json.dumps({"conversation": conversation_id, "answer": str(answer)}), flush=True)
