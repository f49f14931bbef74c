"""The DCGM exporter's page, as its documentation shows it, from a small local server."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from conserve_server.core.errors import ConfigError
from conserve_server.energy.dcgm import DcgmMeter, gpus_on
from conserve_server.energy.meter_page import MAX_BYTES, MeterPage, PageUnreadable

HEAD = """\
# HELP DCGM_FI_DEV_POWER_USAGE Power draw (in W).
# TYPE DCGM_FI_DEV_POWER_USAGE gauge
DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-a",pci_bus_id="00000000:01:00.0",device="nvidia0",\
modelName="NVIDIA H100 80GB HBM3",Hostname="node"} 118.3
# HELP DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION Total energy consumption since boot (in mJ).
# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter
"""


def line(gpu: int, uuid: str, millijoules: int, more: str = "", name: str = "NVIDIA H100 80GB HBM3") -> str:
    labels = f'gpu="{gpu}",UUID="{uuid}",device="nvidia{gpu}",modelName="{name}"{more},Hostname="node"'
    return f"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{labels}}} {millijoules}\n"


PAGE = HEAD + line(0, "GPU-a", 5_000_000) + line(1, "GPU-b", 7_500, name="NVIDIA L40S")


@dataclass
class Page:
    """A page on a local server, and what it answers with."""

    text: str = PAGE
    status: int = 200
    pause_s: float = 0.0
    """Between every 20 bytes."""
    url: str = field(default="", init=False)


@pytest.fixture
def exporter() -> Iterator[Page]:
    page = Page()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = page.text.encode()
            self.send_response(page.status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if not page.pause_s:
                self.wfile.write(body)
                return
            with contextlib.suppress(OSError):  # the reader has left
                for at in range(0, len(body), 20):
                    self.wfile.write(body[at : at + 20])
                    time.sleep(page.pause_s)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        page.url = f"http://127.0.0.1:{server.server_port}/metrics"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield page
        finally:
            server.shutdown()
            thread.join()


def test_gpus_are_named_by_their_node_and_read_in_joules(exporter: Page) -> None:
    meter = DcgmMeter("node-a", exporter.url)
    h100, l40s = meter.devices
    assert (h100.name, h100.aliases, h100.label) == ("node-a/0", ("node-a/GPU-a",), "NVIDIA H100 80GB HBM3")
    assert (h100.idle_w, l40s.idle_w) == (75, None)
    assert [reading.energy_j for reading in meter.read(0.0)] == [5000.0, 7.5]
    meter.close()


def test_an_exporter_that_fails_costs_a_reading_and_no_more(exporter: Page) -> None:
    meter = DcgmMeter("node-a", exporter.url)
    exporter.status = 503
    first = meter.read(0.0)[0]
    assert first.energy_j is None
    assert "503" in (first.error or "")
    exporter.status = 200
    assert meter.read(0.0)[0].energy_j == 5000.0
    meter.close()


def test_a_gpu_that_left_the_page_is_missed(exporter: Page) -> None:
    meter = DcgmMeter("node-a", exporter.url)
    exporter.text = HEAD + line(0, "GPU-a", 5_000_000)
    assert "not on http" in (meter.read(0.0)[1].error or "")
    meter.close()


def test_a_page_without_the_counter_names_the_fix(exporter: Page) -> None:
    exporter.text = HEAD
    with pytest.raises(ConfigError, match=r"energy\.nodes\.node-a: .* add it to the exporter's counters"):
        DcgmMeter("node-a", exporter.url)


def test_an_exporter_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"energy\.nodes\.node-a: http://127\.0\.0\.1:9/ can't be read"):
        DcgmMeter("node-a", "http://127.0.0.1:9/")


WRONG_PAGES = {
    "binary": "\x00\xff" * 50,
    "no number": HEAD + line(0, "GPU-a", 1).replace(" 1\n", " a lot\n"),
    "cut off": HEAD + line(0, "GPU-a", 1)[:60],
    "too many": HEAD + "".join(line(n, f"GPU-{n}", 1) for n in range(1100)),
    "too long": HEAD + "# " + "x" * (MAX_BYTES + 1) + "\n" + line(0, "GPU-a", 1),
}


@pytest.mark.parametrize("text", WRONG_PAGES.values(), ids=WRONG_PAGES)
def test_a_page_that_is_none_costs_readings_and_names_itself_at_the_start(exporter: Page, text: str) -> None:
    meter = DcgmMeter("node-a", exporter.url)
    exporter.text = text
    readings = meter.read(0.0)
    assert [reading.energy_j for reading in readings] == [None, None]
    assert all(exporter.url in (reading.error or "") for reading in readings)
    meter.close()
    with pytest.raises(ConfigError, match=r"energy\.nodes\.node-a"):
        DcgmMeter("node-a", exporter.url)


def test_a_page_that_trickles_is_given_up(exporter: Page) -> None:
    exporter.pause_s = 0.02
    page = MeterPage(exporter.url, limit_s=0.1)
    with pytest.raises(PageUnreadable, match=r"longer than 0\.1 s"):
        page.read()
    page.close()


@pytest.mark.parametrize("limit", ["NaN", "+Inf", "-5"])
def test_a_power_cap_that_none_can_be_is_not_known(exporter: Page, limit: str) -> None:
    exporter.text = PAGE + f'DCGM_FI_DEV_POWER_MGMT_LIMIT{{gpu="0",UUID="GPU-a"}} {limit}\n'
    meter = DcgmMeter("node-a", exporter.url)
    assert [device.limit_w for device in meter.devices] == [None, None]
    meter.close()


def test_slices_of_one_gpu_are_one_device_and_noted() -> None:
    sliced = [line(0, "GPU-a", 9000, f',GPU_I_PROFILE="1g.10gb",GPU_I_ID="{i}"') for i in (7, 8)]
    (gpu,) = gpus_on(HEAD + "".join(sliced))
    assert (gpu.index, gpu.energy_j, gpu.is_sliced) == ("0", 9.0, True)


def test_the_power_cap_is_read_where_the_exporter_has_it() -> None:
    limit = 'DCGM_FI_DEV_POWER_MGMT_LIMIT{gpu="0",UUID="GPU-a"} 350\n'
    assert gpus_on(PAGE + limit)[0].limit_w == 350
