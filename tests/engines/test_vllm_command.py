"""The command line and environment of an engine, as data."""

from __future__ import annotations

import json
from typing import Any

import pytest

from conserve_server.core.config import Config, parse_config
from conserve_server.core.errors import ConfigError
from conserve_server.engines.engine import Role
from conserve_server.engines.vllm_command import EngineCommand, Model, Slot, emulated_command, vllm_command

FOLDER = Model("/models/small", is_folder=True)


def slot(role: Role = Role.PREFILL, index: int = 0, gpus: str = "0") -> Slot:
    return Slot(role=role, index=index, port=8100, transfer_port=5600, cores="3", gpus=gpus)


def config(**launcher: object) -> Config:
    pools = {"prefill": {"count": 1}, "decode": {"count": 2, "flags": ["--max-num-seqs", "9"]}}
    return parse_config({"model": "small", "pools": pools, "launcher": launcher})


def command(
    role: Role = Role.PREFILL, *, device: str = "cpu", model: Model = FOLDER, **launcher: object
) -> EngineCommand:
    return vllm_command(config(**launcher), slot(role), model, python="/venv/bin/python", device=device)


def option(made: EngineCommand, name: str) -> str:
    """What argparse would read: the last one wins."""
    last = len(made.argv) - 1 - made.argv[::-1].index(name)
    return made.argv[last + 1]


def test_a_cpu_engine_gets_the_recipe_that_moves_kv_between_cpus() -> None:
    made = command()
    assert made.argv[:3] == ("/venv/bin/python", "-m", "vllm.entrypoints.openai.api_server")
    assert option(made, "--dtype") == "float32"
    assert option(made, "--block-size") == "32"
    assert "--enforce-eager" in made.argv
    assert option(made, "--kv-cache-memory-bytes") == str(1024**3)
    assert made.env["VLLM_CPU_OMP_THREADS_BIND"] == "3"
    assert made.env["UCX_TLS"] == "tcp,shm,self"
    assert "CUDA_VISIBLE_DEVICES" not in made.env


def test_a_gpu_engine_gets_its_gpu_and_no_cpu_setting() -> None:
    made = command(device="cuda")
    assert made.env["CUDA_VISIBLE_DEVICES"] == "0"
    assert not {"--dtype", "--block-size", "--enforce-eager", "--kv-cache-memory-bytes"} & set(made.argv)
    assert not {"VLLM_CPU_OMP_THREADS_BIND", "UCX_TLS"} & set(made.env)
    assert "--tensor-parallel-size" not in made.argv


def test_an_engine_with_two_gpus_is_sharded_over_them() -> None:
    made = vllm_command(config(), slot(gpus="2,3"), FOLDER, python="python", device="cuda")
    assert made.env["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert option(made, "--tensor-parallel-size") == "2"


@pytest.mark.parametrize(("device", "buffer"), [("cpu", "cpu"), ("cuda", "cuda")])
@pytest.mark.parametrize(("role", "kv_role"), [(Role.PREFILL, "kv_producer"), (Role.DECODE, "kv_consumer")])
def test_kv_moves_from_prefill_to_decode(device: str, buffer: str, role: Role, kv_role: str) -> None:
    connector = json.loads(option(command(role, device=device), "--kv-transfer-config"))
    assert connector == {"kv_connector": "NixlConnector", "kv_role": kv_role, "kv_buffer_device": buffer}


@pytest.mark.parametrize("has_plugin", [False, True])
def test_the_plugin_s_routes_are_added_where_it_is_installed(has_plugin: bool) -> None:
    made = vllm_command(config(), slot(), FOLDER, python="python", device="cpu", has_plugin=has_plugin)
    assert ("conserve_vllm.ConversationRoutes" in made.argv) is has_plugin


def test_without_prefillers_there_is_no_connector() -> None:
    alone = parse_config({"pools": {"decode": {"count": 1}}})
    made = vllm_command(alone, slot(Role.DECODE), FOLDER, python="python", device="cpu")
    assert "--kv-transfer-config" not in made.argv


def test_engines_report_cached_tokens_and_their_own_timing() -> None:
    assert {"--enable-prompt-tokens-details", "--enable-per-request-metrics"} <= set(command().argv)


def test_the_engine_serves_the_configured_name_at_its_slot() -> None:
    made = command()
    assert option(made, "--model") == "/models/small"
    assert option(made, "--served-model-name") == "small"
    assert (option(made, "--host"), option(made, "--port")) == ("127.0.0.1", "8100")
    assert made.env["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "127.0.0.1"
    assert made.env["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "5600"


def test_only_a_folder_is_loaded_offline() -> None:
    assert command().env["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in command(model=Model("Qwen/Qwen3-0.6B", is_folder=False)).env


def test_later_flags_win_over_earlier_ones() -> None:
    made = command(Role.DECODE, flags=["--dtype", "bfloat16", "--max-num-seqs", "5"], max_model_len=2048)
    assert option(made, "--dtype") == "bfloat16"
    assert option(made, "--max-num-seqs") == "9"
    assert option(made, "--max-model-len") == "2048"


def test_a_models_own_flags_come_before_the_users() -> None:
    model = Model("/models/small", is_folder=True, flags=("--tool-call-parser", "hermes"))
    assert option(command(model=model), "--tool-call-parser") == "hermes"
    assert (
        option(command(model=model, flags=["--tool-call-parser", "mistral"]), "--tool-call-parser")
        == "mistral"
    )


def test_the_users_environment_wins() -> None:
    assert command(env={"UCX_TLS": "all"}).env["UCX_TLS"] == "all"


@pytest.mark.parametrize("flag", ["--port", "--port=1", "--served-model-name", "--host"])
def test_a_flag_that_the_launcher_sets_itself_is_refused_by_name(flag: str) -> None:
    with pytest.raises(ConfigError, match=rf"launcher\.flags must not set {flag.partition('=')[0]}"):
        command(flags=[flag, "1"])


def test_an_emulated_engine_is_told_its_place() -> None:
    made = emulated_command(config(max_model_len=512), slot(Role.DECODE, 1), python="python")
    assert made.argv[:3] == ("python", "-m", "conserve_server.engines.emulated")
    assert option(made, "--port") == "8100"
    assert option(made, "--role") == "decode"
    assert option(made, "--model") == "small"
    assert option(made, "--name") == "decode-1"
    assert option(made, "--max-model-len") == "512"


def planned(
    policy: str, role: Role, *, max_model_len: int | None = None, has_plugin: bool = False, **part: object
) -> EngineCommand:
    """The command under a policy with these constants."""
    launcher = {} if max_model_len is None else {"max_model_len": max_model_len}
    document = {
        "scheduler": {"policy": policy, policy: part},
        "pools": {"prefill": {"count": 1}, "decode": {"count": 1}},
        "launcher": launcher,
    }
    given = parse_config(document)
    return vllm_command(given, slot(role), FOLDER, python="python", device="cuda", has_plugin=has_plugin)


def test_with_the_plugin_decode_engines_choose_their_chunks_by_their_load() -> None:
    made = planned("conserve_plus", Role.DECODE, has_plugin=True)
    assert made.env["CONSERVE_SMALLEST_CHUNK"] == "256"
    assert {"--max-num-batched-tokens", "--long-prefill-token-threshold"}.isdisjoint(made.argv)
    for other in (planned("conserve_plus", Role.PREFILL, has_plugin=True), planned("conserve", Role.DECODE)):
        assert "CONSERVE_SMALLEST_CHUNK" not in other.env


def test_chunks_of_one_size_can_be_asked_for() -> None:
    made = planned("conserve_plus", Role.DECODE, has_plugin=True, smallest_chunk_tokens=0)
    assert "CONSERVE_SMALLEST_CHUNK" not in made.env
    assert option(made, "--max-num-batched-tokens") == "512"


def test_conserve_plus_gives_decode_engines_small_steps_and_all_engines_priorities() -> None:
    decode, prefill = (planned("conserve_plus", role) for role in (Role.DECODE, Role.PREFILL))
    assert option(decode, "--max-num-batched-tokens") == "512"
    assert option(decode, "--long-prefill-token-threshold") == "384"
    assert "--max-num-batched-tokens" not in prefill.argv
    assert {option(made, "--scheduling-policy") for made in (decode, prefill)} == {"priority"}


def test_conserve_plus_leaves_to_vllm_what_is_set_to_zero() -> None:
    made = planned(
        "conserve_plus",
        Role.DECODE,
        first_turn_priority=0,
        decode_chunk_tokens=0,
        decode_long_prefill_tokens=0,
    )
    flags = {"--scheduling-policy", "--max-num-batched-tokens", "--long-prefill-token-threshold"}
    assert flags.isdisjoint(made.argv)


def test_a_long_prefills_share_is_no_longer_than_the_longest_context() -> None:
    made = planned("conserve_plus", Role.DECODE, max_model_len=128)
    assert option(made, "--long-prefill-token-threshold") == "128"


def test_other_policies_leave_the_engines_schedulers_alone() -> None:
    made = vllm_command(config(), slot(Role.DECODE), FOLDER, python="python", device="cuda")
    assert {"--scheduling-policy", "--max-num-batched-tokens"}.isdisjoint(made.argv)
    ordering = planned("ampd", Role.PREFILL, reorders_prefills=True)
    assert option(ordering, "--scheduling-policy") == "priority"


def test_engines_with_both_roles_give_and_take_kv() -> None:
    both = parse_config({"pools": {"decode": {"count": 2, "has_both_roles": True}}})
    made = vllm_command(both, slot(Role.DECODE), FOLDER, python="python", device="cuda")
    assert json.loads(option(made, "--kv-transfer-config"))["kv_role"] == "kv_both"


def with_host_tier(device: str, *, prefill: int = 1, has_plugin: bool = True) -> dict[str, Any]:
    pools = {"prefill": {"count": prefill}, "decode": {"count": 1, "host_kv_gib": 0.5}}
    given = parse_config({"model": "small", "pools": pools})
    made = vllm_command(
        given, slot(Role.DECODE), FOLDER, python="python", device=device, has_plugin=has_plugin
    )
    found: dict[str, Any] = json.loads(option(made, "--kv-transfer-config"))
    return found


def test_a_decoder_with_host_memory_asks_nixl_first_and_then_its_host_tier() -> None:
    connector = with_host_tier("cuda")
    assert (connector["kv_connector"], connector["kv_role"]) == ("MultiConnector", "kv_both")
    nixl, host = connector["kv_connector_extra_config"]["connectors"]
    assert (nixl["kv_connector"], nixl["kv_role"]) == ("NixlConnector", "kv_consumer")
    assert host == {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "cpu_bytes_to_use": 512 * 1024**2,
            "offload_prompt_only": False,
            "eviction_policy": "ConversationPolicy",
            "cache_policy_module_path": "conserve_vllm.host_tier",
        },
    }


def test_a_decoder_without_prefillers_has_the_host_tier_alone() -> None:
    assert with_host_tier("cuda", prefill=0)["kv_connector"] == "OffloadingConnector"


def test_a_cpu_engine_s_host_tier_copies_with_a_spec_of_our_own() -> None:
    extra = with_host_tier("cpu", prefill=0)["kv_connector_extra_config"]
    assert (extra["spec_name"], extra["spec_module_path"]) == ("PlainCopySpec", "conserve_vllm.host_tier")


def test_without_the_plugin_gpus_have_the_stock_order_and_cpus_no_host_tier() -> None:
    extra = with_host_tier("cuda", prefill=0, has_plugin=False)["kv_connector_extra_config"]
    assert extra == {"cpu_bytes_to_use": 512 * 1024**2, "offload_prompt_only": False}
    with pytest.raises(ConfigError, match=r"pools\.decode\.host_kv_gib"):
        with_host_tier("cpu", has_plugin=False)


def test_a_prefiller_that_holds_no_conversations_takes_no_host_memory() -> None:
    pools = {"prefill": {"count": 1, "host_kv_gib": 1}, "decode": {"count": 1}}
    with pytest.raises(ConfigError, match="holds no conversations"):
        parse_config({"model": "small", "pools": pools})
