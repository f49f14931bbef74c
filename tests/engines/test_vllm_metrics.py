"""Reading a vLLM engine's Prometheus page."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_server.engines.vllm_metrics import (
    CACHE_CONFIG,
    KV_USAGE,
    MAX_COUNT,
    MAX_SAMPLES,
    RUNNING,
    STARTED,
    TRANSFERS,
    WAITING,
    read_metrics,
    total,
)

PAGE = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
vllm:cache_config_info{block_size="32",engine="0",num_gpu_blocks="100"} 1.0
vllm:cache_config_info{block_size="32",engine="1",num_gpu_blocks="100"} 1.0
process_start_time_seconds 1.79e+09
vllm:nixl_xfer_time_seconds_count{engine="0",model_name="m"} 3.0
"""


def test_ranks_are_summed_and_the_fullest_one_is_the_kv_use() -> None:
    seen = read_metrics(PAGE)
    assert (seen.running, seen.waiting, seen.kv_usage, seen.kv_capacity_tokens) == (3, 4, 0.5, 6400)
    assert seen.generation == "1790000000.0"


def load(**labels: str) -> str:
    """The least that a page must have, and the size of the KV cache."""
    config = ",".join(f'{name}="{value}"' for name, value in labels.items())
    lines = ("vllm:num_requests_running 1.0", "vllm:num_requests_waiting 0.0", "vllm:kv_cache_usage_perc 0.5")
    return "\n".join((*lines, f"vllm:cache_config_info{{{config}}} 1.0", ""))


def test_an_engine_that_does_not_say_its_start_or_its_size_is_read_without() -> None:
    seen = read_metrics(load())
    assert (seen.running, seen.kv_capacity_tokens, seen.generation) == (1, None, "")


def test_a_capacity_that_is_not_known_yet_is_unknown() -> None:
    assert read_metrics(load(block_size="32", num_gpu_blocks="None")).kv_capacity_tokens is None


BROKEN = {
    "empty": "",
    "another program's": "<html><body>404</body></html>",
    "no load": "process_start_time_seconds 1.79e+09\n",
    "one series missing": load().replace("vllm:num_requests_waiting", "vllm:num_requests_swapped"),
    "a NaN": load().replace("running 1.0", "running NaN"),
    "infinite": load().replace("running 1.0", "running +Inf"),
    "1e400": load().replace("running 1.0", "running 1e400"),
    "too many": load().replace("running 1.0", "running 1e300"),
    "a word": load().replace("running 1.0", "running many"),
    "negative": load().replace("waiting 0.0", "waiting -3"),
    "no value": load().replace("running 1.0", "running"),
    "a use of NaN": load().replace("perc 0.5", "perc NaN"),
    "more than all in use": load().replace("perc 0.5", "perc 1.5"),
    "the same series twice": load() + "vllm:num_requests_running 1.0\n",
    "the same labels twice": load() + 'vllm:num_requests_waiting{a="1"} 1\n' * 2,
    "a start that is no time": load() + "process_start_time_seconds NaN\n",
    "a size that is a word": load(block_size="32", num_gpu_blocks="many"),
    "a size below zero": load(block_size="32", num_gpu_blocks="-1"),
    "a size beyond all sizes": load(block_size="9" * 16, num_gpu_blocks="9" * 16),
    "a size of many digits": load(block_size="32", num_gpu_blocks="9" * 10_000),
    "labels that do not end": load() + 'vllm:num_requests_running{engine="0 1.0\n',
    "too many ranks": load()
    + "".join(f'vllm:num_requests_running{{engine="{rank}"}} 1.0\n' for rank in range(MAX_SAMPLES)),
}


@pytest.mark.parametrize("page", BROKEN.values(), ids=BROKEN.keys())
def test_a_page_that_no_engine_writes_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_metrics(page)


def test_what_is_refused_is_named() -> None:
    with pytest.raises(ValueError, match="vllm:num_requests_running is nan"):
        read_metrics(BROKEN["a NaN"])
    with pytest.raises(ValueError, match="vllm:num_requests_running is there twice"):
        read_metrics(BROKEN["the same series twice"])
    with pytest.raises(ValueError, match="--disable-log-stats"):
        read_metrics(BROKEN["no load"])


def test_a_share_that_rounding_made_slightly_too_large_is_all() -> None:
    page = load().replace("perc 0.5", "perc 1.0000000002")
    assert read_metrics(page).kv_usage == 1.0


VALUES = st.one_of(st.floats(width=64).map(str), st.text(max_size=20), st.integers().map(str))
SERIES = st.sampled_from((RUNNING, WAITING, KV_USAGE, CACHE_CONFIG, STARTED))
LABELS = st.one_of(st.just(""), st.text(max_size=30).map(lambda text: "{" + text + "}"))
LINES = st.tuples(SERIES, LABELS, VALUES).map(lambda parts: f"{parts[0]}{parts[1]} {parts[2]}")


@given(st.lists(st.one_of(LINES, st.text(max_size=60)), max_size=20), st.booleans())
def test_whatever_a_page_says_it_is_a_load_that_can_be_or_refused(lines: list[str], is_whole: bool) -> None:
    page = (load() if is_whole else "") + "\n".join(lines)
    try:
        seen = read_metrics(page)
    except ValueError:
        return
    assert 0 <= seen.running <= MAX_SAMPLES * MAX_COUNT
    assert 0 <= seen.waiting <= MAX_SAMPLES * MAX_COUNT
    assert 0.0 <= seen.kv_usage <= 1.0
    assert seen.kv_capacity_tokens is None or 0 < seen.kv_capacity_tokens <= MAX_COUNT


@given(st.binary(max_size=400))
def test_bytes_that_are_no_page_are_refused(page: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_metrics(page.decode())


def test_a_counter_is_summed_over_its_labels() -> None:
    assert total(PAGE, TRANSFERS) == 3.0
