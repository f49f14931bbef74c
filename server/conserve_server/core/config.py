"""The configuration file: one TOML document for `conserve up` and `conserve serve`.

Every part is a frozen model with its defaults in the class. Unknown keys, wrong types and
values out of range are refused by their full name, all of them at once.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from conserve_server.core.config_part import Part, Seconds
from conserve_server.core.energy_config import EnergyConfig
from conserve_server.core.errors import ConfigError
from conserve_server.core.kv_config import KvConfig
from conserve_server.core.policy_config import SchedulerConfig, TierConfig
from conserve_server.core.pool_config import PoolsConfig

TenantName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _none_of(*names: str) -> AfterValidator:
    def check(name: str) -> str:
        if name in names:
            raise ValueError(f"{name} is the gateway's own to set: it can't be a client's")
        return name

    return AfterValidator(check)


_TRANSFERS: Final = ("kv_transfer_params", "ec_transfer_params")
FieldName = Annotated[str, _none_of(*_TRANSFERS, "request_id", "session_id", "cache_salt", "vllm_xargs")]
ArgumentName = Annotated[str, _none_of(*_TRANSFERS)]


class TenantConfig(Part):
    """One tenant: the API keys that are its, and its own limits where they differ from the gateway's."""

    api_keys: tuple[SecretStr, ...] = ()
    api_keys_file: str | None = None
    """A file with one key a line, `#` begins a comment; relative to the working directory."""
    max_conversations: int | None = Field(default=None, gt=0)
    max_concurrent_turns: int | None = Field(default=None, gt=0)
    kv_share: float = Field(default=1.0, gt=0)
    """Its weight where tenants want more KV than there is: each may hold that part of all weights, and more
    while others want less."""
    cache_group: TenantName | None = None
    """Tenants of one group trust one another: they share cached prompts. None: it shares with nobody."""

    @field_validator("api_keys", mode="before")
    @classmethod
    def _from_list(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _has_keys(self) -> Self:
        if not self.api_keys and self.api_keys_file is None:
            raise ValueError("has no keys: set its api_keys or its api_keys_file")
        return self


class GatewayConfig(Part):
    """Where the gateway listens and what bounds a request."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    max_body_bytes: int = Field(default=32 * 1024 * 1024, gt=0)
    body_timeout_s: Seconds = 60.0
    """How long a request's body may take to arrive, then 408. The largest body in a minute is a slow line
    still (4 Mbit/s); a client that never ends its body would hold a turn's place for ever."""
    max_held_body_bytes: int = Field(default=1024 * 1024 * 1024, gt=0)
    """Bytes of request bodies that the gateway holds at once, of all tenants: those that are read, and
    those whose turn waits or runs; one more is a 503. What goes to an engine is copied once."""
    max_connections: int = Field(default=20_000, gt=0)
    """Open connections of clients at once; one more is answered 503 and closed. Twice what one tenant may
    have in turns; each that waits takes a few kilobytes and an open file (`ulimit -n`)."""
    max_wait_s: Seconds = 60.0
    """Longest wait of a first turn for room on a decoder, then 503."""
    max_waiting_turns: int = Field(default=1000, gt=0)
    """Turns that wait for room at once; a new conversation beyond them is a 503 at once. Well under
    max_concurrent_turns, so that what waits for a place never takes that of a conversation that has one."""
    turn_timeout_s: Seconds = 600.0
    """Longest silence of an engine within one leg, then 504."""
    stream_head_after_s: Seconds = 10.0
    """After so long without a token a streamed answer gets its head, and a comment each time it has waited
    as long again: clients and proxies give up on what says nothing, many after 30 to 60 s. From then on
    an error is the stream's last event, and no status."""
    max_placements: int = Field(default=3, gt=0)
    """How often engines may fail a turn before its first byte, in either leg; 1 never tries again. Each
    placement may prefill the whole history. A third failure is the request's own fault, or the cluster's.
    A request that two engines ended at is refused before, whatever this says."""
    retry_share: float = Field(default=0.2, ge=0, le=1)
    """Tries after a failure, as a share of all turns; a hundred may come at once. Beyond it a failed turn is
    a 503: where most engines fail, trying again makes it worse."""
    write_timeout_s: Seconds = 60.0
    """Longest time in which a client takes nothing of what was sent to it; its turn is cancelled then.
    Longer than any pause of a network that is alive, short enough not to hold a decoder's place."""
    idle_timeout_s: Seconds = 3600.0
    """A conversation with no turn for this long has ended; its reservation is freed."""
    synthetic_idle_timeout_s: Seconds = 300.0
    """The same for a conversation that no client named. Shorter: nobody can release one, most are
    over after one turn, and a tool rarely runs longer."""
    yield_after_s: Seconds = 30.0
    """While turns wait for room, a named conversation that has rested for so long gives up its reservation.
    It goes on: its next turn is placed again, where it was if there is room. Longer than most tools run."""
    recognised_kept: int = Field(default=50_000, ge=0)
    """How many conversations of one tenant and model can be recognised by their message history;
    0 recognises none. Each takes about half a kilobyte."""
    responses_kept: int = Field(default=50_000, ge=0)
    """How many answers of the Responses API are known by their ids, for each tenant: whose conversation
    `previous_response_id` goes on, which engine has one stored. Each takes about a third of a kilobyte."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose web pages may call the gateway, such as `https://app.example.org`, or `*`."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that the gateway answers to, without ports, or `*`; addresses, names without a dot and what ends
    in `.localhost` or `.internal` always. Without any, all names, unless `host` is a loopback address
    and no tenants are configured: then a web page could use the gateway by a name that leads there."""
    ended_kept: int = Field(default=10_000, ge=0)
    """How many ended conversations of a tenant can still be read by `GET /v1/conversations/{id}`."""
    max_conversations: int = Field(default=100_000, gt=0)
    """Live conversations of one tenant; a new one beyond them is a 429. Bounds the gateway's memory."""
    max_concurrent_turns: int = Field(default=10_000, gt=0)
    """Turns of one tenant that run or wait at once, then 429. Bounds what waiting bodies take."""
    tenants: dict[TenantName, TenantConfig] = Field(default_factory=dict)
    """Who may send turns, by API key. Without any, everything is one tenant and no key is asked for."""
    admin_key: SecretStr | None = None
    """Opens every tenant's conversations, and no turns. `CONSERVE_ADMIN_KEY` in the environment wins."""
    metrics_need_admin_key: bool = False
    """Whether `/metrics`, and the engines in `/health`, are shown to the admin key only."""
    cache_salt_secret: SecretStr | None = None
    """Part of every tenant's cache salt, which else depends on its name alone. No client can use a salt that
    it guesses; this is for engines that others reach directly."""
    passed_fields: tuple[FieldName, ...] = ()
    """Fields of clients' bodies that go to engines beside those that always do, such as `priority`."""
    passed_vllm_xargs: tuple[ArgumentName, ...] = ()
    """Entries of `vllm_xargs` that go to engines beside those that vLLM's own models read."""
    max_traced_turns_per_s: float = Field(default=100.0, ge=0)
    """Turns that get spans, in a second; the others count in `conserve_untraced_turns_total`. Writing
    a turn's spans takes longer than serving it; agents on one gateway rarely come near this rate."""
    probe_interval_s: Seconds = 1.0
    """Time between two looks at an engine's health and metrics."""
    drain_timeout_s: Seconds = 30.0
    """How long running turns may go on after the gateway was told to stop."""
    engine_drain_timeout_s: Seconds = 300.0
    """How long conversations stay bound to an engine that is draining; then their next turn places them
    anew. Long enough for most conversations to end, and each that does not costs one prefill."""

    @model_validator(mode="after")
    def _holds_a_body(self) -> Self:
        if self.max_held_body_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_held_body_bytes is less than max_body_bytes ({self.max_body_bytes}): a body of that "
                "size could never be served; raise the one or lower the other"
            )
        return self

    @field_validator("cors_origins", "allowed_hosts", "passed_fields", "passed_vllm_xargs", mode="before")
    @classmethod
    def _from_list(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            is_origin = parts.scheme in ("http", "https") and parts.hostname and not parts.path
            if origin != "*" and not is_origin:
                raise ValueError(f"{origin!r} is no origin such as https://app.example.org, nor *")
        return origins

    @field_validator("allowed_hosts")
    @classmethod
    def _are_names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if host != "*" and not re.fullmatch(r"[A-Za-z0-9._-]+", host):
                raise ValueError(f"{host!r} is no name such as gateway.example.org, without a port, nor *")
        return hosts


class LauncherConfig(Part):
    """How `conserve up` starts local engines."""

    engine: Literal["vllm", "emulated"] = "vllm"
    python: str | None = None
    """The Python of the environment that holds vLLM; None uses the running one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    run_dir: str = ".conserve"
    """Logs and the record of what runs, relative to the working directory."""
    kv_cache_gib: float | None = Field(default=None, gt=0)
    """KV cache of each CPU engine in GiB; None is 1. GPUs use vLLM's own flags."""
    max_model_len: int | None = Field(default=None, gt=0)
    flags: tuple[str, ...] = ()
    """Extra vLLM flags for every local engine."""
    env: dict[str, str] = Field(default_factory=dict)
    start_timeout_s: Seconds = 600.0
    stop_timeout_s: Seconds = 15.0
    warm_up: bool = True
    """Whether each decoder answers once, with KV from each prefiller, before the engines count as ready."""
    max_restarts: int = Field(default=3, ge=0)
    """How often one engine that dies is started again before `conserve up` gives up."""

    @field_validator("flags", mode="before")
    @classmethod
    def _from_list(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value


class Config(Part):
    """The whole document."""

    model: str = "smollm2-135m"
    """`smollm2-135m` (prepared from its PyPI package), a folder, or a model id that the engines can load."""
    gateway: GatewayConfig = GatewayConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    kv: KvConfig = KvConfig()
    pools: PoolsConfig
    launcher: LauncherConfig = LauncherConfig()
    energy: EnergyConfig = EnergyConfig()
    tiers: dict[str, TierConfig] = Field(default_factory=dict)
    """Speeds by the name that `pools.*.tiers` uses."""

    @model_validator(mode="after")
    def _knows_its_tiers(self) -> Self:
        for pool, part in (("prefill", self.pools.prefill), ("decode", self.pools.decode)):
            for tier in (*part.tiers, *(record.tier for record in part.records if record.tier)):
                if tier not in self.tiers:
                    raise ValueError(f"pools.{pool}.tiers names {tier!r}: describe it as [tiers.{tier}]")
        return self

    @property
    def is_local(self) -> bool:
        """Whether the engines are this configuration's to start."""
        return self.pools.decode.count > 0


def load_config(path: Path) -> Config:
    """Read a TOML configuration. Raises ConfigError naming every key that can't be used."""
    try:
        document = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"no configuration at {path}: pass the path of a TOML file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return parse_config(document, source=str(path))


def parse_config(document: dict[str, object], *, source: str = "configuration") -> Config:
    """The document as a Config. Raises ConfigError naming every key that can't be used."""
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        problems = "\n".join(f"  {_problem(e['loc'], e['type'], e['msg'])}" for e in error.errors())
        raise ConfigError(f"{source} can't be used:\n{problems}") from error


def _problem(location: tuple[int | str, ...], kind: str, message: str) -> str:
    name = ".".join(str(part) for part in location) or "the document"
    if kind == "extra_forbidden":
        return f"{name}: no such key; remove it or check its spelling"
    if kind == "missing":
        return f"{name}: missing"
    return f"{name}: {message.removeprefix('Value error, ')}"
