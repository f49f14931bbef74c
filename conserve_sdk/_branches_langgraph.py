"""Which branch of a LangGraph thread a model call belongs to: the path of its node.

A thread's prompts differ by node and go on from run to run, while LangGraph names every task
anew. So the branch is made of nodes' names alone; only tasks of one node that run in one step
of a graph (`Send`) are told apart, by number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from conserve_sdk._branches import Task, branch_of

_PART_SEPARATOR: Final = "|"
_TASK_SEPARATOR: Final = ":"
_SENT: Final = "__pregel_push"
"""How LangGraph's paths of tasks begin that were sent (`Send`) or called (`@task`)."""


def langgraph_branch(config: Mapping[str, Any]) -> str | None:
    """The branch in a running graph's configuration; None for the steps of the outermost graph."""
    return branch_of(_tasks(config))


def _tasks(config: Mapping[str, Any]) -> Iterator[Task]:
    """The tasks that make the branch, outermost first, as the checkpoint namespace has them.

    The namespace is `node:task` of each graph around, joined by `|`. A part of digits counts
    the graphs that one task ran.
    """
    configurable = config.get("configurable") or {}
    steps: Mapping[str, str] = configurable.get("checkpoint_map") or {}
    parts = _lasting(
        str(configurable.get("checkpoint_ns") or "").split(_PART_SEPARATOR),
        (config.get("metadata") or {}).get("langgraph_path") or (),
    )
    for index, part in enumerate(parts):
        node, _, task_id = part.partition(_TASK_SEPARATOR)
        if node and not node.isdigit():
            yield Task(node, task_id, _step(steps, parts[:index]))


def _lasting(parts: Sequence[str], path: Sequence[Any]) -> Sequence[str]:
    """The namespace without what is only a step: the last task, unless it was sent.

    A task that was called (`@task`) is its caller's step, whose path is in its own.
    """
    while path and path[-1] is True:
        parts, path = parts[:-1], path[1]
    was_sent = bool(path) and path[0] == _SENT
    return parts if was_sent else parts[:-1]


def _step(steps: Mapping[str, str], around: Sequence[str]) -> str | None:
    """The step of the graph around, by its checkpoint: tasks of one node that share it run at once.

    A task's own calls (`@task`) are in its step, and may as well come one after another.
    """
    step = steps.get(_PART_SEPARATOR.join(around))
    is_call = bool(around) and step == steps.get(_PART_SEPARATOR.join(around[:-1]))
    return None if is_call else step
