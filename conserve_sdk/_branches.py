"""A branch's name: the tasks around a model call, by what stays the same from run to run."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from conserve_sdk import protocol

_SEPARATOR: Final = "|"
_STEPS_KEPT: Final = 4096
"""Steps whose tasks are remembered: far more than can be running."""


@dataclass(frozen=True, slots=True)
class Task:
    """One task around a model call, outer or inner; `id` is its run's.

    Tasks of one name that share a `step` run at once. It is None where none can run beside it.
    """

    name: str
    id: str
    step: str | None


def branch_of(tasks: Iterable[Task]) -> str | None:
    """The branch that the tasks, outermost first, make; None without any.

    Parallel tasks of one name are `name`, `name#2`, `name#3`, in the order in which they are
    first seen; those of a later step take these names again, and find the cache there.
    """
    return join(*(_numbered(task) for task in tasks))


def join(*parts: str | None) -> str | None:
    """The branch inside of branches, outermost first; None where there is none."""
    return protocol.clean_id(_SEPARATOR.join(part for part in parts if part))


def _numbered(task: Task) -> str:
    number = _process_numbers().number(task) if task.step is not None else 1
    return task.name if number == 1 else f"{task.name}#{number}"


class _Numbers:
    """Numbers the tasks of one name in one step, from 1, as they are first seen."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str | None, str], dict[str, int]] = OrderedDict()

    def number(self, task: Task) -> int:
        with self._lock:
            key = (task.step, task.name)
            numbers = self._seen.setdefault(key, {})
            self._seen.move_to_end(key)
            if len(self._seen) > _STEPS_KEPT:
                self._seen.popitem(last=False)
            return numbers.setdefault(task.id, len(numbers) + 1)


@functools.cache
def _process_numbers() -> _Numbers:
    """The process's own: tasks run in several threads, and outside of any conversation's block."""
    return _Numbers()
