"""Blocks of a running task that somebody else can end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Cutoff(Generic[Value]):
    """`with` gives the value; once `cut` was called the block ends, and raises what `why` makes.

    What `asyncio.timeout` does without a deadline, for a third of its cost: each turn has several.
    """

    __slots__ = ("_all", "_cancelling", "_is_cut", "_task", "_value", "_why")

    def __init__(self, value: Value, running: set[Cutoff[Value]], why: Callable[[], Exception]) -> None:
        self._value = value
        self._all = running
        self._why = why
        self._is_cut = False

    def __enter__(self) -> Value:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task's block can be cut off")
        self._task, self._cancelling = task, task.cancelling()
        self._all.add(self)
        return self._value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._all.discard(self)
        if not self._is_cut:
            return
        # A cancellation that somebody else asked for as well is theirs, and goes on.
        is_ours = self._task.uncancel() <= self._cancelling
        if is_ours and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise self._why() from error

    def cut(self) -> None:
        """End the block. The caller is another task."""
        if not self._is_cut:
            self._is_cut = True
            self._task.cancel()
