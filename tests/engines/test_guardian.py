"""Nothing that a program starts outlives its guardian's orders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conserve_server.engines import guardian
from tests.processes import is_running, wait_for, wait_gone

pytestmark = pytest.mark.slow

FOREVER = "import time; time.sleep(3600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {FOREVER}"
LEAVES_AN_ORPHAN = f"""
import subprocess, sys
orphan = subprocess.Popen([sys.executable, "-S", "-c", {STUBBORN!r}], start_new_session=True)
print(orphan.pid, flush=True)
"""


SHARES_MEMORY = f"""
import multiprocessing, signal, time
from multiprocessing.shared_memory import SharedMemory

def child(name):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(name, flush=True)
    {FOREVER}

if __name__ == "__main__":
    segment = SharedMemory(create=True, size=4096)
    multiprocessing.get_context("spawn").Process(target=child, args=(segment.name,)).start()
    {FOREVER}
"""
"""Like an engine: its shared memory is freed by a helper, once its child is gone too."""


@contextmanager
def guarded(log: Path, *argv: str, grace_s: float = 0.5) -> Iterator[subprocess.Popen[str]]:
    command = (sys.executable, "-I", "-S", guardian.__file__, str(log), str(grace_s), *argv)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def program_pid(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def python(program: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", program)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "program.log"


def test_exit_status_and_output_are_the_programs(log: Path) -> None:
    with guarded(
        log, *python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(5)")
    ) as process:
        assert process.wait() == 5
    assert sorted(log.read_text().split()) == ["err", "out"]


def test_a_signal_that_ends_the_program_shows_in_the_status(log: Path) -> None:
    with guarded(log, *python("import os; os.kill(os.getpid(), 9)")) as process:
        assert process.wait() == 128 + signal.SIGKILL


def test_a_program_that_does_not_exist_is_named_in_the_log(log: Path) -> None:
    with guarded(log, "/nowhere/python") as process:
        assert process.wait() == 127
    assert "/nowhere/python can't be started" in log.read_text()


@pytest.mark.parametrize("program", [FOREVER, STUBBORN])
def test_sigterm_ends_the_program_even_if_it_ignores_it(log: Path, program: str) -> None:
    with guarded(log, *python(program)) as process:
        pid = program_pid(process)
        process.terminate()
        process.wait()
        assert not is_running(pid)


def test_the_end_of_its_input_ends_the_program(log: Path) -> None:
    with guarded(log, *python(FOREVER)) as process:
        pid = program_pid(process)
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
        assert not is_running(pid)


def test_a_program_that_ends_leaves_no_orphan_in_another_session(log: Path) -> None:
    with guarded(log, *python(LEAVES_AN_ORPHAN)) as process:
        assert process.wait() == 0
        assert not is_running(int(log.read_text()))


def test_a_killed_guardian_takes_its_program_along(log: Path) -> None:
    with guarded(log, *python(STUBBORN)) as process:
        pid = program_pid(process)
        process.kill()
        wait_gone([pid])


def test_a_program_that_is_killed_leaves_no_shared_memory(log: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(SHARES_MEMORY)
    with guarded(log, sys.executable, "-S", str(program)) as process:
        pid = program_pid(process)
        wait_for(lambda: log.exists() and log.read_text().endswith("\n"), "the shared memory's name")
        segment = Path("/dev/shm") / log.read_text().strip()  # noqa: S108  where Linux keeps it
        assert segment.exists()
        os.kill(pid, signal.SIGKILL)
        process.wait()
        assert not segment.exists()


def test_ctrl_c_in_the_terminal_is_left_to_the_launcher(log: Path) -> None:
    with guarded(log, *python(FOREVER)) as process:
        pid = program_pid(process)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCHLD)  # makes it look around once
        assert is_running(pid)
        process.terminate()
        assert process.wait() == 128 + signal.SIGTERM


def test_descendants_are_found_below_their_root() -> None:
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {FOREVER!r}])"
    with subprocess.Popen(python(parent)) as process:
        try:
            wait_for(lambda: len(guardian.descendants(process.pid)) == 1, "the grandchild to start")
            (grandchild,) = guardian.descendants(process.pid)
            ours = [pid for pid in guardian.descendants(os.getpid()) if pid in (process.pid, grandchild)]
            assert ours == [process.pid, grandchild]
        finally:
            for pid in [process.pid, *guardian.descendants(process.pid)]:
                os.kill(pid, signal.SIGKILL)
