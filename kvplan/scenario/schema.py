"""A scenario: one YAML file = model + gpu + engine + workload + slo + pricing, checked key by key.

YAML is read safely; a scenario runs no code and reads no file that it does not name. Knows no arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from kvplan.engines.flags import Engine, EngineArgs
from kvplan.ground.config import Config
from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.ground.files import scenarios_dir
from kvplan.ground.strict_yaml import StrictLoader, load_yaml
from kvplan.profiles.host_links import Drive, DriveName, HostLinkName, find_drive
from kvplan.profiles.measured_links import MeasuredLinks
from kvplan.scenario.space import Search
from kvplan.schedulers.sglang.config import SchedulePolicyName
from kvplan.schedulers.vllm.config import Admission, BatchWait
from kvplan.schedulers.vllm.offloading.config import SecondaryTierConfig
from kvplan.timing.links import LinkName
from kvplan.workload.classes import Slo, Workload
from kvplan.workload.problems import Problems

MAX_HORIZON_S = 90 * 24 * 3600.0
"""Simulated seconds; the clock's picoseconds fill 63 bits after 106 days."""
MAX_FILE_BYTES = 4 << 20
MAX_NODES = 200_000
MAX_DEPTH = 50
MAX_DIGITS = 400
"""Characters of a number; Python's own limit is 4,300, and base 60 (`1:30:00`) has none."""


def _quoted(version: Any) -> Any:
    if isinstance(version, float | int):
        raise ValueError(f"write the version in quotes, '{version}': 0.20 as a number is 0.2")
    return version


class StepTimeSpec(Config):
    """Where step times come from: a profile, of this card or the most alike, or four stated coefficients."""

    profile: str | None = None
    """A bundled profile's name or a path; None = the best for this card and engine, else a like card's, scaled."""
    fixed_us: Annotated[float, Field(ge=0, le=1e9)] | None = None
    """Stated instead: microseconds of every step. Then the three below count too."""
    per_sequence_us: float = Field(0.0, ge=0, le=1e9)
    """Microseconds per decoding sequence."""
    per_context_token_ns: float = Field(0.0, ge=0, le=1e9)
    """Nanoseconds per token of decode context."""
    per_prefill_token_us: float = Field(0.0, ge=0, le=1e9)
    """Microseconds per prompt token."""
    shared_reads: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the KV that several running sequences hold together (branches of one prompt) which a decode step reads
    once, not once for each; None = the profile's: 1 on CPUs, 0 on GPUs without cascade attention (L2: 0 to 0.5)."""

    @model_validator(mode="after")
    def _one_source(self) -> StepTimeSpec:
        if self.profile is not None and self.fixed_us is not None:
            raise ValueError("give a profile or fixed_us, not both")
        if self.fixed_us is None and (
            self.per_sequence_us or self.per_context_token_ns or self.per_prefill_token_us
        ):
            raise ValueError("per_* need fixed_us beside them (0 is allowed if another is positive)")
        if self.fixed_us == 0 and not self.per_sequence_us and not self.per_context_token_ns:
            raise ValueError("a decode step must take time: raise fixed_us or per_sequence_us")
        return self


class Disaggregation(Config):
    """Prefill and decode on different replicas; the prompt's KV moves between them."""

    prefill_replicas: int = Field(1, ge=1, le=4096)
    """Replicas that compute prompts; `replicas` counts the decoding ones."""
    transfer_bytes_per_s: float = Field(ge=1000, le=1e15)
    """Bandwidth of one transfer."""
    latency_s: float = Field(0.0, ge=0, le=3600)
    """Fixed time per transfer."""


Time = Annotated[float, Field(ge=0, le=1e6)]


class Frontend(Config):
    """What stands before an engine: its API server processes. Each time that is not given is as measured for the
    engine's version, or none where step times are stated."""

    request_ms: Time | None = None
    """CPU time of a request: HTTP, checks, the way to the engine and its end."""
    per_1k_tokens_ms: Time | None = None
    """CPU time of a thousand prompt tokens: text to tokens."""
    latency_ms: Time | None = None
    """Hops between processes, of a request; nobody queues for them."""
    output_us: Time | None = None
    """Microseconds of CPU of a sequence's new tokens: taken from the engine and made text."""
    send_us: Time | None = None
    """Microseconds of CPU of a piece of a stream; tokens that come before the last were sent leave in one piece."""


def _no_frontend(value: Any) -> Any:
    """`none`: no times at all."""
    return dict.fromkeys(Frontend.model_fields, 0.0) if value == "none" else value


class Interconnect(Config):
    """What joins a deployment's GPUs, where it is not what the profile's machine had."""

    kind: LinkName | None = None
    """pcie4, pcie5, nvlink, ib; None = what the GPU table says of the card."""
    gb_s: Annotated[float, Field(gt=0, le=1e5)] | None = None
    """10^9 bytes a second that one GPU's exchanges reach, one direction; None = the kind's usual."""
    latency_us: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """Microseconds of one hop; None = the kind's usual."""


def _named_link(value: Any) -> Any:
    """A kind, or as a command line says it: pcie5,gb_s=16,latency_us=20."""
    if not isinstance(value, str):
        return value
    parts = value if "=" in value.partition(",")[0] else f"kind={value}"
    return {name: said for name, _, said in (part.partition("=") for part in parts.split(","))}


class FileTier(Config):
    """A tier of files below host memory: an entry of vLLM's `secondary_tiers`, and what the files lie on."""

    type: str = "fs"
    """fs, vLLM's file system tier; obj, p2p, kvcr, example and tiers of one's own are refused by name."""
    root_dir: str = ""
    """Where the files lie; has no effect here."""
    n_read_threads: int = Field(16, ge=1, le=1024)
    """Threads that prefer loads."""
    n_write_threads: int = Field(16, ge=1, le=1024)
    """Threads that prefer stores."""
    drive: DriveName | None = None
    """nvme4, nvme5 or cephfs (`catalog/host_links.yaml`); None = as the profile measured it, else nvme4."""
    read_gb_s: Annotated[float, Field(gt=0, le=1e5)] | None = None
    """10^9 bytes a second of all threads of an engine together; None = the drive's usual."""
    write_gb_s: Annotated[float, Field(gt=0, le=1e5)] | None = None
    """10^9 bytes a second; None = the drive's usual."""

    @model_validator(mode="after")
    def _is_followed(self) -> FileTier:
        if self.type != "fs":
            raise ValueError(
                f"type {self.type}: of vLLM's tiers below host memory fs is simulated; obj, p2p, kvcr, example and"
                " others are not"
            )
        return self

    @property
    def engine_part(self) -> SecondaryTierConfig:
        """What the engine is told."""
        return SecondaryTierConfig(n_read_threads=self.n_read_threads, n_write_threads=self.n_write_threads)

    def found(self, measured: MeasuredLinks | None) -> Drive:
        """The drive: as stated, as a profile measured it, or as the catalog has it."""
        return find_drive(self.drive, self.read_gb_s, self.write_gb_s, measured)


class KvOffloading(Config):
    """How the tier of `engine.kv_offloading_size` is kept, and what joins it with the GPUs; vLLM's connector keys."""

    eviction_policy: Literal["lru", "arc"] = "lru"
    """Which chunk leaves a full tier."""
    offload_prompt_only: bool = True
    """Store prompts alone; answers come with the next turn's prompt."""
    blocks_per_chunk: int = Field(1, ge=1, le=4096)
    """GPU blocks stored and loaded together."""
    store_threshold: int = Field(0, ge=0, le=10**6)
    """Store a chunk from this offer on; 0 and 1 = at once."""
    max_tracker_size: int = Field(64_000, ge=1, le=10**9)
    """Chunks whose offers are counted for store_threshold."""
    spec_name: Literal["CPUOffloadingSpec", "TieringOffloadingSpec"] = "CPUOffloadingSpec"
    """TieringOffloadingSpec puts `secondary_tiers` below host memory."""
    secondary_tiers: tuple[FileTier, ...] = ()
    """Each finished store goes on to all of them; what host memory lost comes back from there. Each engine has its own
    files, which are never deleted."""
    link: HostLinkName | None = None
    """pcie3, pcie4, pcie5 or c2c; None = the card's own (`catalog/host_links.yaml`)."""
    gb_s: Annotated[float, Field(gt=0, le=1e5)] | None = None
    """10^9 bytes a second of one GPU, one direction; None = the link's usual."""

    @model_validator(mode="after")
    def _one_tier(self) -> KvOffloading:
        if self.secondary_tiers and self.spec_name != "TieringOffloadingSpec":
            raise ValueError(
                "secondary_tiers: spec_name TieringOffloadingSpec reads them, CPUOffloadingSpec does not"
            )
        if self.spec_name == "TieringOffloadingSpec" and self.store_threshold >= 2:
            raise ValueError("store_threshold is not supported for TieringOffloadingSpec")
        return self


class SGLangFlags(Config):
    """SGLang's own flags; sizes (--context-length, --page-size, ...) are in `engine` under vLLM's names."""

    schedule_policy: SchedulePolicyName = "fcfs"
    """Order of the waiting queue."""
    schedule_conservativeness: float = Field(1.0, gt=0, le=100)
    """Scales the share of future tokens that running requests are expected to use."""
    enable_mixed_chunk: bool = False
    """Running requests decode inside the prefill pass."""
    max_prefill_tokens: int = Field(16384, ge=1, le=10**9)
    """Prompt tokens after which no further request joins a prefill pass."""
    prefill_max_requests: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """Most requests in a prefill pass."""
    prefill_decode_interval: int = Field(0, ge=0, le=10**9)
    """Decode passes between two prefill passes."""
    radix_eviction_policy: Literal["lru", "lfu"] = "lru"
    """Which cached leaf goes first."""
    priority_scheduling_preemption_threshold: int = Field(10, ge=0, le=10**9)
    """With `engine.scheduling_policy: priority`: by how much a priority must be better to take a place."""


_VLLMS_OWN = (
    *("max_num_active_seqs", "max_num_scheduled_tokens", "max_num_queued_reqs", "max_num_queued_tokens"),
    *("long_prefill_token_threshold_adaptive", "enable_mamba_shared_prefix_checkpoint", "stream_interval"),
)
"""Flags of vLLM's scheduler and API servers that no other engine's rules read."""
Share = Annotated[float, Field(ge=0, le=1)]


class Deployment(Config):
    """One model on its GPUs, and how many copies of it."""

    model: str
    """A bundled name, a config.json, a folder, or a repository id."""
    gpu: str = "h100"
    """A name of the GPU table."""
    engine: EngineArgs = EngineArgs()
    """Flags of `vllm serve`."""
    engine_version: Annotated[str, BeforeValidator(_quoted)] = "0.32"
    """Of vLLM: its defaults, its planner's and its scheduler's rules; 0.11 to 0.33 were held to their own logs."""
    acceptance_rate: Share | Annotated[tuple[Share, ...], Field(min_length=1, max_length=64)] = 0.7
    """Speculation: how likely each draft is right, given that those before it were; a list says it by position, as
    engines log it (the last holds beyond). A decode keeps the right ones before the first wrong one."""
    accepted_lengths: Annotated[tuple[Share, ...], Field(min_length=1, max_length=65)] | None = None
    """Speculation, instead of `acceptance_rate`: shares of the decode steps that kept 0, 1, 2 ... drafts, as measured;
    they add up to 1. With fewer drafts than were measured, the first ones fare as they did."""
    sglang: SGLangFlags | None = None
    """Given, even as `{}`: SGLang's scheduler and memory rules instead of vLLM's; `engine_version` has no say then."""
    replicas: int = Field(1, ge=1, le=4096)
    """Independent copies behind the router; `engine.data_parallel_size` multiplies them."""
    admission: Admission = "grow"
    """When a waiting request may enter: grow (vLLM: what fits now), reserve_max and max_utilization (TensorRT-LLM's
    GUARANTEED_NO_EVICT and MAX_UTILIZATION); `sglang: {}` runs SGLang's scheduler."""
    batch_wait: BatchWait | None = None
    """TensorRT-LLM: hold prompts back while others decode, until a step is fuller."""
    router: Literal["round_robin", "least_kv", "prefix_aware", "kv_aware"] = "round_robin"
    """Which replica gets the next request. round_robin knows API servers alone: those of vLLM spread on over their
    data-parallel replicas. prefix_aware knows what it sent where, kv_aware what each holds on its GPUs and in tiers
    beyond them."""
    max_queue: Annotated[int, Field(ge=0, le=10**9)] | None = None
    """Requests beyond this many waiting on a replica are refused at once."""
    interconnect: Annotated[Interconnect, BeforeValidator(_named_link)] | None = None
    """pcie4, pcie5, nvlink or ib, also with numbers (pcie5,gb_s=16,latency_us=20 or a mapping): comes before what a
    profile's machine had."""
    kv_offloading: KvOffloading = KvOffloading()
    """How the tier of `engine.kv_offloading_size` is kept, and over which link."""
    frontend: Annotated[Frontend, BeforeValidator(_no_frontend)] = Frontend()
    """What requests and tokens take in the API servers (`engine.api_server_count`), so that times are a client's;
    `none`: nothing."""
    disaggregation: Disaggregation | None = None
    """Prefill and decode apart."""
    step_time: StepTimeSpec = StepTimeSpec()
    """Where step times come from."""
    colocate: dict[str, str] = Field(default_factory=dict, max_length=64)
    """Role (draft, reward, reference, critic) -> another model on the same GPUs: its memory comes off the budget."""

    @property
    def engine_name(self) -> Engine:
        """Whose scheduler and flags these are."""
        return "vllm" if self.sglang is None else "sglang"

    @property
    def engine_of(self) -> str:
        """The engine as `--engine` names it, e.g. vllm@0.32."""
        return f"vllm@{self.engine_version}" if self.sglang is None else "sglang"

    @model_validator(mode="before")
    @classmethod
    def _replaced(cls, data: Any) -> Any:
        """Name what took the place of rules that the engines themselves replaced."""
        if isinstance(data, dict) and "sharing" in data:
            raise ValueError(
                "`sharing` is gone: vLLM shares full blocks; engine.enable_prefix_caching: false shares nothing,"
                " `sglang: {}` shares single tokens"
            )
        if isinstance(data, dict) and data.get("admission") == "conservative":
            raise ValueError("admission: conservative is gone: `sglang: {}` runs SGLang's own scheduler")
        return data

    @model_validator(mode="after")
    def _lengths_are_shares(self) -> Deployment:
        shares = self.accepted_lengths
        if shares is None:
            return self
        if "acceptance_rate" in self.model_fields_set:
            raise ValueError("acceptance_rate and accepted_lengths say the same thing; give one of them")
        if abs(sum(shares) - 1) > 0.005:
            raise ValueError(
                f"accepted_lengths adds up to {sum(shares):g}, not 1: shares of 0, 1, 2 ... drafts kept"
            )
        return self

    @model_validator(mode="after")
    def _sglang_is_modelled(self) -> Deployment:
        if self.sglang is None:
            return self
        usual = EngineArgs()
        for what, given in (
            ("disaggregation", self.disaggregation is not None),
            ("engine.num_speculative_tokens", self.engine.num_speculative_tokens),
            ("engine.kv_cache_dtype_skip_layers", self.engine.kv_cache_dtype_skip_layers),
            *((f"engine.{name}", getattr(self.engine, name) != getattr(usual, name)) for name in _VLLMS_OWN),
        ):
            if given:
                raise ValueError(f"{what} is modelled for vLLM only; leave out it or `sglang`")
        return self


class Pricing(Config):
    """What the GPUs cost."""

    file: str | None = None
    """A YAML file of prices (`gpus:`) and grid factors (`grids:`), which come before the bundled ones."""
    usd_per_gpu_hour: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """None = the file's, else the GPU table's price."""
    grid: str = "world"
    """Whose electricity: a grid of the file or a bundled one."""
    grid_gco2_per_kwh: Annotated[float, Field(ge=0, le=1e5)] | None = None
    """Grams of CO2 that a kilowatt-hour costs; None = the grid's."""
    pue: float = Field(1.2, ge=1, le=10)
    """Power of the whole centre over that of its cards (assumed: 1.1 to 1.6); hosts are not in the watts."""


class Limits(Config):
    """When to stop a run that does not end by itself."""

    horizon_s: float = Field(MAX_HORIZON_S, gt=0, le=MAX_HORIZON_S)
    """Simulated seconds; what has not finished by then is counted as unfinished."""
    wall_clock_s: float = Field(3600.0, gt=0, le=1e7)
    """Real seconds the simulation itself may take, drawing its requests included."""
    thrash_ratio: float = Field(4.0, gt=0, le=1e6)
    """The run ends with a verdict when recomputed tokens exceed this many times the useful ones."""


class Scenario(Deployment):
    """Everything one simulation needs."""

    name: str = ""
    """Defaults to the file's name."""
    workload: Workload = Workload()
    """What arrives."""
    problems: Problems | None = None
    """What is to be solved, by which strategies; then nothing else arrives."""
    models: dict[str, Deployment] = Field(default_factory=dict, max_length=64)
    """Further models of the same run; a class names the one that serves it."""
    slo: Slo = Slo()
    """Targets; a class may have its own."""
    pricing: Pricing = Pricing()
    """What the GPUs cost."""
    limits: Limits = Limits()
    """When to stop."""
    search: Search | None = None
    """What `kvplan recommend` may change, and the load it plans for; other commands leave it aside."""
    _folder: Path = PrivateAttr(Path())

    @model_validator(mode="after")
    def _classes_are_served(self) -> Scenario:
        for name, cls in self.workload.by_name.items():
            if cls.model and cls.model not in self.models:
                known = did_you_mean(cls.model, self.models) or "; `models` is empty"
                raise ValueError(f"workload class {name}: model {cls.model!r} is not in `models`{known}")
        return self

    @property
    def folder(self) -> Path:
        """Where relative paths start: the scenario file's folder."""
        return self._folder

    @property
    def deployments(self) -> dict[str, Deployment]:
        """The main model under the empty name, then the further ones."""
        return {"": self, **self.models}


def load_scenario(path: str | Path, overrides: Iterable[str] = ()) -> Scenario:
    """Read a scenario file (or a bundled one by its bare name) and apply `key.path=value` overrides.

    Raises KvplanError in one line: the key's path, what is wrong, the closest known key.
    """
    data, file = read_scenario(path, overrides)
    return parse_scenario(data, file.name, file.parent)


def as_scenario(scenario: Scenario | Mapping[str, Any] | str | Path) -> Scenario:
    """A scenario as it is, from what a file would say, or by a bundled name or path."""
    if isinstance(scenario, Scenario):
        return scenario
    return parse_scenario(dict(scenario)) if isinstance(scenario, Mapping) else load_scenario(scenario)


def read_scenario(path: str | Path, overrides: Iterable[str] = ()) -> tuple[dict[str, Any], Path]:
    """Return what a scenario file says, overrides applied, still unchecked; and the file that was found."""
    file = _find(Path(path))
    data = overridden(_parse(_read(file), str(file)), overrides)
    return {"name": file.stem, **data}, file


def overridden(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A scenario's dictionary with `key.path=value` overrides applied; the one given stays as it is."""
    found = dict(data)
    for override in overrides:
        _set(found, override)
    return found


def parse_scenario(data: dict[str, Any], where: str = "scenario", folder: Path = Path()) -> Scenario:
    """Check a scenario that is already a dictionary; relative paths in it start at `folder`."""
    try:
        scenario = Scenario.model_validate(data)
    except ValidationError as error:
        raise KvplanError(f"{where}: {_first_problem(error, data)}") from None
    except RecursionError:
        raise KvplanError(f"{where}: nested too deeply") from None
    scenario._folder = folder
    return scenario


def dump_scenario(scenario: Scenario) -> str:
    """The scenario as YAML, without what is at its default."""
    data = scenario.model_dump(mode="json", exclude_defaults=True)
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def _find(path: Path) -> Path:
    bundled = scenarios_dir() / f"{path.name.removesuffix('.yaml')}.yaml"
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):
        raise KvplanError(f"{str(path)[:120]!r}... is no name that a file can have") from None
    if bundled.is_file() and path.name == str(path):
        return bundled
    names = [p.stem for p in scenarios_dir().glob("*.yaml")]
    hint = did_you_mean(path.stem, names) or "; kvplan list scenarios names the bundled ones"
    raise KvplanError(f"{path}: {'a folder, no' if path.is_dir() else 'no such'} scenario file{hint}")


def _read(file: Path) -> str:
    if file.stat().st_size > MAX_FILE_BYTES:
        raise KvplanError(f"{file}: larger than {MAX_FILE_BYTES >> 20} MiB; a scenario is a short text")
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KvplanError(f"{file}: cannot be read as text ({type(error).__name__})") from None


def _yaml(text: str, where: str) -> Any:
    """Read YAML in time linear in its size. Raises KvplanError for what is none, too large or too deep."""
    try:
        _look_over(text, where)
        data = load_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
        problem = "nested too deeply" if "nesting depth" in problem else problem
        raise KvplanError(f"{where}{line}: not YAML ({problem})") from None
    except (RecursionError, ValueError, TypeError, AttributeError, LookupError) as error:
        if isinstance(error, KvplanError):
            raise
        raise KvplanError(f"{where}: nested too deeply or not YAML") from None
    _check_size(data, where)
    return data


def _look_over(text: str, where: str) -> None:
    """Count events before anything is built: values, depth, digits."""
    depth = count = 0
    for event in yaml.parse(text, StrictLoader):
        starts = isinstance(event, yaml.CollectionStartEvent)
        depth += starts - isinstance(event, yaml.CollectionEndEvent)
        count += starts or isinstance(event, yaml.ScalarEvent | yaml.AliasEvent)
        if depth > MAX_DEPTH:
            raise _too_deep(where)
        if count > MAX_NODES:
            raise _too_large(where)
        if (
            isinstance(event, yaml.ScalarEvent)
            and len(event.value) > MAX_DIGITS
            and event.implicit[0]
            and event.value[0] in "+-.0123456789"
        ):
            line = getattr(event.start_mark, "line", 0) + 1
            raise KvplanError(f"{where} line {line}: a number of {len(event.value)} characters")


def _check_size(data: Any, where: str) -> None:
    """Count every value, aliases expanded: a document that explodes is noticed before it is copied."""
    left = [(data, 0)]
    for _ in range(MAX_NODES):
        if not left:
            return
        value, depth = left.pop()
        if depth > MAX_DEPTH:
            raise _too_deep(where)
        below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        left += [(child, depth + 1) for child in below]
        if len(left) > MAX_NODES:
            break
    if left:
        raise _too_large(where)


def _too_large(where: str) -> KvplanError:
    return KvplanError(f"{where}: more than {MAX_NODES} values; put long lists into a trace file")


def _too_deep(where: str) -> KvplanError:
    return KvplanError(f"{where}: nested too deeply, more than {MAX_DEPTH} levels")


def _parse(text: str, where: str) -> dict[str, Any]:
    data = _yaml(text, where)
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise KvplanError(f"{where}: must be a mapping with keys such as model, gpu, workload")
    return data


def _set(data: dict[str, Any], override: str) -> None:
    """Apply one `engine.max_num_seqs=64`; the value is read as YAML."""
    path, eq, value = override.partition("=")
    if not eq or not path or path.count(".") > MAX_DEPTH:
        raise KvplanError(f"--set {override[:200]}: write key.path=value, e.g. engine.max_num_seqs=64")
    try:
        set_key(data, path, _yaml(value, "--set"))
    except KvplanError:
        raise KvplanError(f"--set {path[:80]}: {value[:80]!r} is not a YAML value") from None


def set_key(data: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path; the dictionaries on the way are copied, `data` itself is changed."""
    *parents, last = path.split(".")
    for key in parents:
        below = data.get(key)
        data[key] = dict(below) if isinstance(below, dict) else {}
        data = data[key]
    data[last] = value


def _first_problem(error: ValidationError, data: Any) -> str:
    """The first of pydantic's errors as one line: path of the key, what is wrong."""
    problem = min(error.errors(include_url=False), key=lambda p: p["type"] != "extra_forbidden")
    path, known = _locate(problem["loc"], data)
    if problem["type"] == "extra_forbidden":
        return f"{path}: unknown key{did_you_mean(path.rpartition('.')[2], known)}"
    if problem["type"] == "missing":
        return f"{path}: is needed"
    message = problem["msg"].removeprefix("Value error, ")
    got = problem["input"]
    shown = f" (got {got!r})" if isinstance(got, int | float | str | None) and len(repr(got)) < 60 else ""
    shown = "" if repr(got) in message else shown
    return f"{path}: {message}{shown}" if path else message


def _locate(loc: tuple[int | str, ...], data: Any) -> tuple[str, list[str]]:
    """A readable path (union tags left out) and the keys known at its last level."""
    classes: list[type[Config]] = [Scenario]
    known: list[str] = []
    path = []
    for i, part in enumerate(loc):
        fields = {name: f for c in classes for name, f in c.model_fields.items()}
        known = list(fields)
        inside = (
            part in data
            if isinstance(data, dict)
            else isinstance(data, list | tuple) and isinstance(part, int) and part < len(data)
        )
        if not inside and i < len(loc) - 1:
            classes = [c for c in classes if _tag(c) == part] or classes
            continue
        path.append(str(part))
        if part in fields:
            classes = list(_configs(fields[str(part)].annotation))
        data = data[part] if inside else None
    return ".".join(path), known


def _tag(config: type[Config]) -> object:
    field = config.model_fields.get("kind")
    return get_args(field.annotation)[0] if field else None


def _configs(annotation: Any) -> Iterator[type[Config]]:
    """The config classes inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for arg in get_args(annotation):
        yield from _configs(arg)
