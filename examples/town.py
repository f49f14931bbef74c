"""What both example agents share: the task, two real tools, and the schema of each tool choice.

The small model that the demo runs (135 M parameters) can't be trusted to choose a tool, and
writes valid JSON only when it is held to a schema. So the order of the tools is planned here;
which topic and which numbers it picks is its own choice. A larger model would be given the
tools instead.
"""

from pathlib import Path
from typing import Any

NOTES = Path(__file__).parent / "notes"


def search_notes(topic: str) -> str:
    """The lines of the notes that mention the topic."""
    lines = [line for file in sorted(NOTES.glob("*.md")) for line in file.read_text().splitlines()]
    return "\n".join(line for line in lines if topic in line.lower()) or "nothing found"


def calculate(operation: str, a: int, b: int) -> str:
    """Add or multiply two whole numbers."""
    return str(a + b if operation == "add" else a * b)


SYSTEM = """You are a careful assistant of a small coastal town. You answer questions from the \
town's notes. Use search_notes to find the lines that mention a topic, and calculate to add or \
multiply whole numbers that you found. Take one step at a time: choose one tool, read its result, \
then choose the next one. Never guess a number that the notes do not contain."""

QUESTIONS = (
    "How many passengers can the ferry carry on one day?",
    "How many steps does a lighthouse guide climb on one day?",
    "How many visitors can the observatory take in one week?",
)

ANSWER = "Now answer my question in one short sentence."


def _schema(name: str, properties: dict[str, Any]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}


SEARCH = _schema("search_notes", {"topic": {"enum": ["ferry", "lighthouse", "observatory"]}})
CALCULATE = _schema(
    "calculate",
    {
        "operation": {"enum": ["multiply", "add"]},
        "a": {"type": "integer", "minimum": 1, "maximum": 999},
        "b": {"type": "integer", "minimum": 1, "maximum": 999},
    },
)
PLAN = [("search_notes", SEARCH)] * 2 + [("calculate", CALCULATE)] * 2
