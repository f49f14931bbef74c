"""Which branch of a LangGraph thread a model call belongs to: the path of its node.

A thread's prompts differ by node and go on from run to run, while LangGraph names every task
anew. So the branch is made of nodes' names alone; only tasks of one node that run in one step
of a graph (`Send`) are told apart, by number.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from conserve_sdk import protocol

_PART_SEPARATOR: Final = "|"
_TASK_SEPARATOR: Final = ":"
_SENT: Final = "__pregel_push"
"""How LangGraph's paths of tasks begin that were sent (`Send`) or called (`@task`)."""
_STEPS_KEPT: Final = 4096
"""Steps whose tasks are remembered: far more than can be running."""


def branch(config: Mapping[str, Any]) -> str | None:
    """The branch in a running graph's configuration; None for the steps of the outermost graph.

    Parallel tasks of one node are `node`, `node#2`, `node#3`, in the order in which they are
    first seen; what is sent in a later step takes these names again, and finds the cache there.
    """
    named = [_named(task) for task in _tasks(config)]
    return protocol.clean_id(_PART_SEPARATOR.join(named))


@dataclass(frozen=True, slots=True)
class _Task:
    """One task around a model call. `step` is None where no task of its node can run beside it."""

    node: str
    id: str
    step: str | None


def _tasks(config: Mapping[str, Any]) -> Iterator[_Task]:
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
            yield _Task(node, task_id, _step(steps, parts[:index]))


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


def _named(task: _Task) -> str:
    number = _process_numbers().number(task) if task.step is not None else 1
    return task.node if number == 1 else f"{task.node}#{number}"


class _Numbers:
    """Numbers the tasks of one node in one step, from 1, as they are first seen."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str | None, str], dict[str, int]] = OrderedDict()

    def number(self, task: _Task) -> int:
        with self._lock:
            key = (task.step, task.node)
            numbers = self._seen.setdefault(key, {})
            self._seen.move_to_end(key)
            if len(self._seen) > _STEPS_KEPT:
                self._seen.popitem(last=False)
            return numbers.setdefault(task.id, len(numbers) + 1)


@functools.cache
def _process_numbers() -> _Numbers:
    """The process's own: a graph's tasks run in several threads, and outside of any conversation's block."""
    return _Numbers()
