"""Keep one program and all that it starts within the life of the process that asked for it.

    python guardian.py LOG GRACE_S PROGRAM ARGUMENT ...

A small process between a launcher and an engine. It prints the program's pid, sends its
output to LOG, and exits with its status (128 + N where signal N ended it). It stops the
program when its own standard input ends, which happens also when the launcher is killed
with SIGKILL, or on SIGTERM: first SIGTERM to the program, then, after GRACE_S seconds,
SIGKILL to every descendant, those in other process groups too. Standard library only and
light, since one starts with every engine.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LEFTOVER_GRACE_S = 2.0
"""How long descendants that outlive the program may take to clean up (shared memory, caches)."""
KILL_LIMIT_S = 30.0
"""After that what is left can't be killed (it hangs in the kernel)."""
POLL_S = 0.05
OURS = (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT)


def main(arguments: list[str]) -> int:
    """Run the program of `arguments` to its end or to ours; its exit status."""
    log, grace_s, argv = arguments[0], float(arguments[1]), arguments[2:]
    wake = _signal_pipe()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    pid = _start(argv, log)
    print(pid, flush=True)  # noqa: T201  the launcher reads it
    watch = _Watch(pid)
    try:
        _until_end_or_stop(watch, wake)
        if watch.status is None:
            watch.signal_program(signal.SIGTERM)
            watch.wait(until_s=time.monotonic() + grace_s)
    finally:
        watch.clear_descendants()
    return 0 if watch.status is None else _exit_code(watch.status)


class _Watch:
    """The program's status and its descendants. As a subreaper we inherit every orphan."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None
        self.has_children = True

    def reap(self) -> None:
        """Take the exit status of whatever has ended."""
        while self.has_children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.has_children = False
                return
            if pid == 0:
                return
            if pid == self.pid:
                self.status = status

    def wait(self, *, until_s: float, for_all: bool = False) -> None:
        """Return when the program (or with `for_all` every descendant) has ended, or at `until_s`."""
        while time.monotonic() < until_s:
            self.reap()
            if not self.has_children or (self.status is not None and not for_all):
                return
            time.sleep(POLL_S)

    def signal_program(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def clear_descendants(self) -> None:
        """Leave none alive: what the program left behind gets a moment, then SIGKILL until all are reaped.

        Python's resource trackers go last, by themselves: they free the shared memory (hundreds
        of MiB of a vLLM engine) of processes that are gone.
        """
        self.reap()
        if self.status is not None:
            self._signal_all(signal.SIGTERM)
            self.wait(until_s=time.monotonic() + LEFTOVER_GRACE_S, for_all=True)
        self._kill_all(for_s=LEFTOVER_GRACE_S, spare=_is_resource_tracker)
        self._kill_all(for_s=KILL_LIMIT_S)

    def _kill_all(self, *, for_s: float, spare: Callable[[int], bool] = lambda _: False) -> None:
        until_s = time.monotonic() + for_s
        while self.has_children and time.monotonic() < until_s:
            self._signal_all(signal.SIGKILL, spare)
            self.wait(until_s=time.monotonic() + POLL_S, for_all=True)

    def _signal_all(self, number: signal.Signals, spare: Callable[[int], bool] = lambda _: False) -> None:
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                if not spare(pid):
                    os.kill(pid, number)


def _is_resource_tracker(pid: int) -> bool:
    try:
        return b"multiprocessing.resource_tracker" in Path("/proc", str(pid), "cmdline").read_bytes()
    except OSError:
        return False


def descendants(root: int) -> list[int]:
    """The pids below `root`, parents before children, from /proc."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found = list(children.get(root, ()))
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended while we looked
            # "pid (name) state ppid …", where the name may hold spaces and parentheses.
            stat = Path("/proc", entry, "stat").read_text(errors="replace")
            yield int(entry), int(stat.rpartition(")")[2].split()[1])


def _until_end_or_stop(watch: _Watch, wake: int) -> None:
    stdin = sys.stdin.fileno()
    while watch.status is None:
        readable, _, _ = select.select([stdin, wake], [], [])
        if wake in readable and signal.SIGTERM in os.read(wake, 512):
            return
        if stdin in readable and not os.read(stdin, 512):
            return
        watch.reap()


def _signal_pipe() -> int:
    """A descriptor on which each signal that concerns us arrives as one byte, its number."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda _number, _frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return read


def _start(argv: list[str], log: str) -> int:
    """The program's pid. A signal for it that comes before its start waits until then."""
    guardian = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, OURS)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OURS)
        return pid
    try:
        _become(argv, log, guardian)
    except OSError as error:
        os.write(2, f"{argv[0]} can't be started: {error}\n".encode())
    finally:
        os._exit(127)


def _become(argv: list[str], log: str, guardian: int) -> None:
    """In the child: its own session, its output to the log, dead with its guardian, then the program."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guardian:  # it died before the line above took effect
        os._exit(127)
    signal.set_wakeup_fd(-1)
    for number in OURS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OURS)
    os.execvp(argv[0], argv)  # noqa: S606  no shell is wanted


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
