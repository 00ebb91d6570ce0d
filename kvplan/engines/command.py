"""Reading the command that starts an engine: `vllm serve ...` as people paste it, with what stands around it.

Takes shell lines with `export`s, docker lines, Kubernetes and compose manifests, argument lists, `python -m` and
`sglang.launch_server`, `trtllm-serve`. Every flag of vLLM's parser is known (`catalog/vllm_flags.json`): it acts, is
listed as without effect on the plan, or is listed as changing it in a way that is not planned. What the parser
would refuse is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pydantic import ValidationError

from kvplan.engines.drafting import draft_tiers
from kvplan.engines.ec_transfer import own_connector
from kvplan.engines.environment import ACTS as VARIABLES
from kvplan.engines.environment import sort_out
from kvplan.engines.flags import EngineArgs, as_count, as_none
from kvplan.engines.joint_commands import join
from kvplan.engines.kv_transfer import connector_of
from kvplan.engines.mm_limits import check_pruning
from kvplan.engines.nodes import USUAL_GPUS, check_devices, replica_size
from kvplan.engines.shell_words import image_version, start_of, starts_of, words_of
from kvplan.engines.some_values import about_value, check_together, in_vain
from kvplan.engines.speculative_config import not_planned, read_speculation, speculation, without_effect
from kvplan.engines.spelling import WORDS, understand
from kvplan.engines.vllm_parser import (
    flag_value,
    known_flag,
    merge_into,
    object_of,
    plain,
    split_flags,
    vllm_flags,
    with_config_file,
)
from kvplan.ground.config import complaint
from kvplan.ground.errors import KvplanError

NOT_PLANNED = {
    "logits-processors": "code of one's own: what it keeps of logits, and its time, are not counted",
    "worker-extension-cls": "code of one's own in each worker: what it takes of the card is not counted",
    "model-class-overrides": "a model of one's own: its weights and KV may be others than planned",
}
"""Flags that change memory, scheduling or time in ways that are not planned, and what they are about."""
OURS = {field: field.replace("_", "-") for field in EngineArgs.model_fields if field != "env"}
"""Fields that are flags of vLLM's -> the flag."""
OF_A_MACHINE = {
    **dict.fromkeys(
        ("node-rank", "data-parallel-rank", "data-parallel-start-rank"), "planned as the first's command"
    ),
    "data-parallel-size-local": "all replicas are planned on one machine",
}
"""Flags whose value a script finds on each machine, and what is planned where it is a variable's."""
OTHERS_TOO = "more than one engine is started; the first is planned"
"""A note: what is pasted starts several."""

BY_RAY = "Ray finds the machines of --distributed-executor-backend ray: planned on one, or say kvplan's own --nnodes"
"""A note: Ray puts ranks on the machines that it finds."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command, read."""

    engine: str
    model: str
    args: EngineArgs
    draft: str = ""
    """The model that drafts."""
    hf_overrides: Mapping[str, Any] = field(default_factory=dict)
    hf_config_path: str = ""
    """Where the config lies, if not beside the model."""
    no_effect: tuple[str, ...] = ()
    """Flags, and variables, that do not change the plan."""
    not_planned: tuple[str, ...] = ()
    """Flags, and variables, that change it in ways that are not planned, with what they are about."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """`export`ed and prefixed variables."""
    notes: tuple[str, ...] = ()
    version: str = ""
    """Of the container's image, where its tag is one."""

    @property
    def engine_asked(self) -> str:
        """The engine with its version, as `parse_engine` reads it."""
        return f"{self.engine}@{self.version}" if self.version else self.engine


def read_command(text: str | Sequence[str]) -> Command:
    """Read a command: one text as pasted, or a shell's words.

    Raises:
        KvplanError: no engine is started, no model named, a flag or value that the engine's parser refuses.

    >>> told = read_command("vllm serve Qwen/Qwen3-8B -tp 2 --max-model-len 32k --port 8000")
    >>> told.model, told.args.tensor_parallel_size, told.args.max_model_len, told.no_effect
    ('Qwen/Qwen3-8B', 2, 32000, ('--port',))
    """
    words = words_of(text)
    environment, engine, rest = start_of(words)
    used = set(re.findall(r"\$\{?(\w+)", " ".join(words)))  # the shell's own, not the engine's
    environment = {name: said for name, said in environment.items() if name not in used or name in VARIABLES}
    version = image_version(words) if engine == "vllm" else ""
    found = _read(engine, rest, environment)
    if len(starts := [*starts_of(words)]) > 1:
        found = _beside(found, starts[1:])
    said = (f"planned as vLLM {version}, the image's version",) if version else ()
    return replace(found, version=version, notes=(*said, *found.notes))


def _read(engine: str, words: list[str], environment: dict[str, str]) -> Command:
    return _vllm(words, environment) if engine == "vllm" else _other(engine, words, environment)


def _beside(first: Command, others: Sequence[tuple[dict[str, str], str, list[str]]]) -> Command:
    """The command that the first machine of a deployment runs, where others start the rest of it; else the first."""
    known = [first]
    for environment, engine, words in others:
        with suppress(KvplanError):
            told = _read(engine, words, environment)
            known += [told] if (told.engine, told.model) == (first.engine, first.model) else []
    joint = join([told.args for told in known])
    if joint is None:
        return replace(first, notes=(*first.notes, OTHERS_TOO))
    head = known[joint.first]
    more = () if len(joint.members) == 1 + len(others) else (OTHERS_TOO,)
    return replace(head, args=joint.args, notes=(*head.notes, *joint.notes, *more))


# ---- vLLM


class _Told(NamedTuple):
    """The flags of a command, apart by what they do to the plan."""

    model: str
    acting: dict[str, Any]
    all: dict[str, Any]
    unaffected: list[str]
    unplanned: list[str]


def _vllm(words: list[str], environment: dict[str, str]) -> Command:
    told = _apart(with_config_file(words))
    if not told.model:
        raise KvplanError("the command names no model")
    check_together(told.all)
    fields, draft, notes = _fields(told.acting)
    if acting := {name: said for name, said in environment.items() if name in VARIABLES}:
        fields["env"] = acting
    changing, idle = sort_out(environment)
    drafting = fields.get("speculative_config")
    idle += [f"--speculative-config.{key}" for key in without_effect(drafting)]
    changing += [f"--speculative-config.{key}" for key in not_planned(drafting)]
    args = _args(fields)
    if speculation(drafting).num_speculative_tokens_per_batch_size and draft_tiers(args) is None:
        notes.append("num_speculative_tokens_per_batch_size does nothing over several data-parallel ranks")
    return Command(
        engine="vllm",
        model=told.model,
        args=args,
        draft=draft,
        hf_overrides=object_of(told.acting.get("hf-overrides"), "hf-overrides"),
        hf_config_path=as_none(told.acting.get("hf-config-path")) or "",
        no_effect=tuple(dict.fromkeys(told.unaffected + idle)),
        not_planned=tuple(dict.fromkeys(told.unplanned + changing)),
        environment=environment,
        notes=(*notes, *_of_machines(told.all, args), *in_vain(told.all)),
    )


def _of_machines(told: Mapping[str, Any], args: EngineArgs) -> list[str]:
    """What is taken for machines that no flag names; raises KvplanError for devices that are too few."""
    by_ray = told.get("distributed-executor-backend") == "ray"
    if isinstance(told.get("device-ids"), str) and not by_ray:
        check_devices(told["device-ids"], args)
    unstated = [
        f"--{flag} {told[flag]} is not stated: {meant}"
        for flag, meant in OF_A_MACHINE.items()
        if "$" in str(told.get(flag, ""))
    ]
    return [BY_RAY, *unstated] if by_ray and replica_size(args) > USUAL_GPUS else unstated


def _apart(words: list[str]) -> _Told:
    acting: dict[str, Any] = {}
    dotted: dict[str, Any] = {}
    seen: dict[str, Any] = {}
    model, unaffected, unplanned = "", list[str](), list[str]()
    for i, (name, values) in enumerate(split_flags(words)):
        if i == 0:
            model = values[0] if values else ""
            if len(values) > 1:
                raise KvplanError(f"unrecognized argument {values[1][:60]!r} behind the model {model[:60]!r}")
            continue
        flag, inner, negated = known_flag(name)
        value, spare = flag_value(flag, vllm_flags()[flag], inner, negated, values)
        seen[flag] = value
        model = model or (spare[0] if spare else "")
        if flag in ("model", "model-tag"):
            model = model or str(value)
        elif about := _about(flag, value, negated):
            unplanned.append(f"--{flag} ({about})")
        elif flag not in ACTS:
            check_pruning(flag, value)
            unaffected.append(f"--{flag}")
        elif isinstance(value, str) and "$" in value and flag in OF_A_MACHINE:
            acting |= {} if flag == "data-parallel-size-local" else {flag: 0}
        elif isinstance(value, str) and "$" in value:
            raise KvplanError(f"--{flag} {value}: the variable's value is not stated")
        elif inner:
            merge_into(dotted, {flag: value})
        else:
            acting[flag] = value
    # vLLM's parser adds dotted ones last, in place of an object stated whole
    return _Told(model, acting | dotted, seen, unaffected, unplanned)


def _about(flag: str, value: Any, negated: bool | None) -> str:
    """What a flag changes that is not planned; empty for all others."""
    if flag == "kv-transfer-config" and connector_of(value) not in (None, "OffloadingConnector"):
        return f"connector {connector_of(value)}"
    if flag == "ec-transfer-config" and (own := own_connector(value)):
        return f"connector {own}, code of one's own"
    if flag in NOT_PLANNED and negated is None:
        return NOT_PLANNED[flag]
    return about_value(flag, value)


def _args(fields: Mapping[str, Any]) -> EngineArgs:
    try:
        return EngineArgs(**fields)
    except ValidationError as error:
        raise KvplanError(complaint(error, flag=True)) from None


ACTS = {
    *OURS.values(),
    *(
        "speculative-config",
        "spec-method",
        "spec-model",
        "spec-tokens",
        "hf-overrides",
        "hf-config-path",
    ),
}
"""Flags that act on the plan."""


def _fields(told: Mapping[str, Any]) -> tuple[dict[str, Any], str, list[str]]:
    """Fields of `EngineArgs`, the draft model, notes."""
    fields = {name: told[flag] for name, flag in OURS.items() if flag in told}
    notes: list[str] = []
    speculation = object_of(told.get("speculative-config"), "speculative-config")
    for key, flag in (
        ("method", "spec-method"),
        ("model", "spec-model"),
        ("num_speculative_tokens", "spec-tokens"),
    ):
        if flag in told:
            if key in speculation:
                raise KvplanError(f"--{flag} and --speculative-config {key!r} are mutually exclusive")
            speculation[key] = told[flag]
    draft = ""
    fields.pop("speculative_config", None)
    if speculation:
        found, draft = read_speculation(speculation)
        fields |= found
    limits = object_of(told.get("limit-mm-per-prompt"), "limit-mm-per-prompt")
    if limits:
        fields["limit_mm_per_prompt"] = limits
    for flag in ("mm-processor-kwargs", "media-io-kwargs"):
        if flag in told:
            fields[flag.replace("-", "_")] = object_of(told[flag], flag)
    if told.get("enable-hc-sp"):
        notes.append("--enable-hc-sp: residual streams are timed as if every rank mixed all tokens")
    return fields, draft, notes


# ---- other engines


DEGREES = {
    spelling: f"{short}_size"
    for short, whole in (("tp", "tensor"), ("pp", "pipeline"), ("dp", "data"), ("ep", "expert"))
    for spelling in (short, f"{whole}_parallel_size")
}
"""Other spellings of parallel sizes."""


CHANGES_OTHERS = re.compile(
    r"(enable_|disable_|max_|prefill_|decode_)?(cpu_offload|offload|speculative|spec_|lora|loras|eplb|ep_|elastic_ep|moe_"
    r"|two_batch|tbo_|single_batch|cuda_graph|torch_|torchao|queued|hierarchical|hicache|lmcache|hybrid_|swa_|mamba_"
    r"|attention_backend|mixed_chunk|dp_lm_head|prefill|chunked_context|multimodal|mm_|beam_width)"
    r"|init_expert|stream_|schedule|sampling_backend|fp8_gemm|fp4_gemm|disaggregation|kv_transfer|num_continuous"
    r"|radix_eviction|language_only|encoder_only|dllm|nnodes|quantize_|modelopt|kv_cache_free|guaranteed_no_evict"
    r"|batching_type|gpus_per_node|cluster_size"
)
"""Other engines' flags that change memory, scheduling or time and are not planned, by what their names begin with."""


def _other(engine: str, words: list[str], environment: dict[str, str]) -> Command:
    """SGLang's and TensorRT-LLM's flags by their words; what has none is listed as without effect."""
    spoken: dict[str, Any] = {}
    unaffected: list[str] = []
    unplanned: list[str] = []
    model = ""
    known = {w for word in WORDS[engine] for w in (word.word, *word.also)}
    known |= {"enable_dp_attention"}
    for i, (name, values) in enumerate(split_flags(words)):
        if i == 0:
            model = values[0] if values else ""
            continue
        key = name.replace("-", "_")
        key = DEGREES.get(key, key)
        if key in ("model_path", "model"):
            model = values[0] if values else ""
        elif key in known:
            spoken[key] = _number(values[0]) if values else True
        else:
            (unplanned if CHANGES_OTHERS.match(key) else unaffected).append(f"--{name}")
    if not model:
        raise KvplanError("the command names no model")
    notes = _data_parallel(spoken) if engine == "sglang" else []
    fields = understand(spoken, engine)
    return Command(
        engine=engine,
        model=model,
        args=_args(fields),
        no_effect=tuple(dict.fromkeys(unaffected)),
        not_planned=tuple(dict.fromkeys(unplanned)),
        environment=environment,
        notes=tuple(notes),
    )


def _data_parallel(spoken: dict[str, Any]) -> list[str]:
    """SGLang's two kinds: attention in parts of the tensor-parallel ranks, or whole copies; said as vLLM's, with notes.

    Sizes are ranks: `--tp 8 --dp 8 --enable-dp-attention` are 8 GPUs, each with all heads and an eighth of the experts.
    """
    tp, dp, inside = (
        spoken.get("tp_size", 1),
        spoken.get("dp_size", 1),
        spoken.pop("enable_dp_attention", False),
    )
    if not isinstance(tp, int) or not isinstance(dp, int) or dp < 2:
        return []
    if not inside:
        spoken["dp_size"] = 1
        return [f"--dp {dp}: whole copies of the model; this is one of them"]
    if tp % dp:
        raise KvplanError(f"--enable-dp-attention: --tp {tp} does not divide into --dp {dp} parts")
    spoken["tp_size"] = tp // dp
    return [
        f"--enable-dp-attention: {tp} GPUs, attention in {dp} parts; dense MLPs and the LM head counted whole in each"
    ]


def _number(text: str) -> Any:
    try:
        return as_count(text)
    except (ValueError, KvplanError):
        return plain(text)
