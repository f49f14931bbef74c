"""Real dashboards, each in an environment of its own, started for the tests that need one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from conserve_server.cli.dashboard import phoenix_python
from conserve_server.core.errors import ConfigError
from conserve_server.engines.ports import hold_port
from tests.dashboards.serving import ROOT, START_S, awaited, fetched
from tests.processes import LIMIT_S


@dataclass(frozen=True, slots=True)
class Collector:
    """A dashboard at `url`, and what a process needs in its environment to send its spans there."""

    url: str
    environment: Mapping[str, str]


@pytest.fixture(scope="session")
def phoenix_python_path() -> Path:
    environment = {"CONSERVE_PHOENIX_PYTHON": str(ROOT / ".venv-phoenix" / "bin" / "python"), **os.environ}
    try:
        return phoenix_python(environment)
    except ConfigError as error:
        pytest.fail(str(error))


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    """MLflow's tracking server with a database of its own."""
    python = Path(os.environ.get("CONSERVE_MLFLOW_PYTHON", ROOT / ".venv-mlflow" / "bin" / "python"))
    if not python.exists():
        pytest.fail(f"no MLflow at {python}: run `make mlflow-env`")
    folder = tmp_path_factory.mktemp("mlflow")
    with ExitStack() as held:
        port = hold_port(held, "127.0.0.1")
        database = ("--backend-store-uri", f"sqlite:///{folder}/mlflow.db")
        artifacts = ("--default-artifact-root", str(folder / "artifacts"))
        where = ("--host", "127.0.0.1", "--port", str(port), "--workers", "1")
        argv = (str(python), "-m", "mlflow", "server", *where, *database, *artifacts)
        url = f"http://127.0.0.1:{port}"
        # Its job runners are a dozen processes that traces have no use for.
        with _server(argv, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}, folder / "mlflow.log"):
            experiments = f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0"
            awaited(lambda: fetched(experiments), "MLflow to start", START_S)
            environment = {
                "OTEL_TRACES_EXPORTER": "otlp",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{url}/v1/traces",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_HEADERS": "x-mlflow-experiment-id=0",
            }
            yield Collector(url, environment)


@contextmanager
def _server(argv: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[None]:
    """The server in a process group of its own, ended with all that it started."""
    full = {**os.environ, **environment}
    with (
        log.open("wb") as to,
        subprocess.Popen(argv, env=full, stdout=to, stderr=to, start_new_session=True) as server,
    ):
        try:
            yield
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
