"""Reading a vLLM engine's Prometheus page."""

from conserve_server.engines.vllm_metrics import TRANSFERS, read_metrics, total

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


def test_an_engine_that_reports_nothing_has_no_known_capacity() -> None:
    seen = read_metrics("")
    assert (seen.running, seen.kv_capacity_tokens, seen.generation) == (0, None, "")


def test_a_capacity_that_is_not_a_number_is_unknown() -> None:
    page = 'vllm:cache_config_info{block_size="32",num_gpu_blocks="None"} 1.0\n'
    assert read_metrics(page).kv_capacity_tokens is None


def test_a_counter_is_summed_over_its_labels() -> None:
    assert total(PAGE, TRANSFERS) == 3.0
