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
from dataclasses import replace
from typing import Any, NamedTuple

from kvplan.engines.drafting import draft_tiers
from kvplan.engines.ec_transfer import own_connector
from kvplan.engines.environment import ACTS as VARIABLES
from kvplan.engines.environment import sort_out
from kvplan.engines.flags import EngineArgs, as_none
from kvplan.engines.joint_commands import join
from kvplan.engines.kv_transfer import connector_of
from kvplan.engines.mm_limits import check_pruning
from kvplan.engines.nodes import check_devices
from kvplan.engines.other_command import read_other
from kvplan.engines.pasted.expansion import UNSTATED
from kvplan.engines.pasted.started import Started, Starts, find_starts
from kvplan.engines.some_values import about_value, check_together, in_vain
from kvplan.engines.speculative_config import not_planned, read_speculation, speculation, without_effect
from kvplan.engines.told import Command, check_model, check_stated, engine_args, left_open, shown, spare_words
from kvplan.engines.vllm_parser import (
    GONE,
    IDLE_THEN,
    check_age,
    flag_value,
    known_flag,
    merge_into,
    object_of,
    older_flag,
    plain,
    split_flags,
    vllm_flags,
    with_config_file,
)
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
NAMES = {"vllm": "vLLM", "sglang": "SGLang", "tensorrt-llm": "TensorRT-LLM"}
OTHERS_TOO = "more than one engine is started; the first is planned"
"""A note: what is pasted starts several."""


def read_command(text: str | Sequence[str]) -> Command:
    """Read a command: one text as pasted, or a shell's words.

    Raises:
        KvplanError: no engine is started, no model named, a flag or value that the engine's parser refuses.

    >>> told = read_command("vllm serve Qwen/Qwen3-8B -tp 2 --max-model-len 32k --port 8000")
    >>> told.model, told.args.tensor_parallel_size, told.args.max_model_len, told.no_effect
    ('Qwen/Qwen3-8B', 2, 32000, ('--port',))
    """
    try:
        return _read(find_starts(text))
    except RecursionError:
        raise KvplanError(
            "the command cannot be read: too many brackets or blocks within each other"
        ) from None
    except KvplanError as error:
        raise type(error)(re.sub(r"\s*\n\s*", " ", str(error).replace(UNSTATED, ""))) from None


def _read(found: Starts) -> Command:
    start = found.starts[0]
    told = _read_one(start, found)
    if len(found.starts) > 1:
        told = _beside(told, found)
    version = _series(start)
    said = (f"planned as {NAMES[start.engine]} {version}, {start.said_by}",) if version else ()
    return replace(told, version=version, notes=(*said, *told.notes, *_notes(start)))


def _read_one(start: Started, found: Starts) -> Command:
    environment = {
        name: said.replace(UNSTATED, "")
        for name, said in start.environment.items()
        if name not in found.used or name in VARIABLES
    }
    read = _vllm if start.engine == "vllm" else read_other
    return read(start, environment, found.files)


def _beside(first: Command, found: Starts) -> Command:
    """The command that the first machine of a deployment runs, where others start the rest of it; else the first."""
    known = [first]
    for start in found.starts[1:]:
        with suppress(KvplanError):
            told = _read_one(start, found)
            known += [told] if (told.engine, told.model) == (first.engine, first.model) else []
    joint = join([told.args for told in known])
    if joint is None:
        return replace(first, notes=(*first.notes, OTHERS_TOO))
    head = known[joint.first]
    more = () if len(joint.members) == len(found.starts) else (OTHERS_TOO,)
    return replace(head, args=joint.args, notes=(*head.notes, *joint.notes, *more))


def _series(start: Started) -> str:
    """The version as it is planned: of vLLM by its series."""
    return ".".join(start.version.split(".")[: 2 if start.engine == "vllm" else 3])


def _notes(start: Started) -> list[str]:
    """What of the paste around the command is to be said."""
    hidden = [name for name in sorted(start.hidden) if name in VARIABLES and name not in start.environment]
    return [
        *start.notes,
        *(f"{name} is set and does not reach the engine: it is not exported or passed on" for name in hidden),
    ]


# ---- vLLM


class _Told(NamedTuple):
    """The flags of a command, apart by what they do to the plan."""

    model: str
    acting: dict[str, Any]
    all: dict[str, Any]
    unaffected: list[str]
    unplanned: list[str]
    open: list[str]
    """Words, not of a flag, that are not stated."""


def _vllm(start: Started, environment: dict[str, str], files: Mapping[str, str]) -> Command:
    told = _apart(with_config_file(start.words, files), start)
    check_model(told.model, start)
    check_together(told.all)
    fields, draft, notes = _fields(told.acting)
    if acting := {name: said for name, said in environment.items() if name in VARIABLES}:
        fields["env"] = acting
        for name in acting:
            check_stated(name, start.environment[name], start)
    changing, idle = sort_out(environment)
    drafting = fields.get("speculative_config")
    idle += [f"--speculative-config.{key}" for key in without_effect(drafting)]
    changing += [f"--speculative-config.{key}" for key in not_planned(drafting)]
    args = engine_args(fields)
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
        notes=(*notes, *_of_machines(told.all, args), *in_vain(told.all), *left_open(told.open)),
    )


def _of_machines(told: Mapping[str, Any], args: EngineArgs) -> list[str]:
    """What is taken for machines that no flag names; raises KvplanError for devices that are too few."""
    by_ray = told.get("distributed-executor-backend") == "ray"
    devices = told.get("device-ids")
    if isinstance(devices, str) and UNSTATED not in devices and not by_ray:
        check_devices(devices, args)
    return [
        f"--{flag} {shown(str(told[flag]))} is not stated: {meant}"
        for flag, meant in OF_A_MACHINE.items()
        if UNSTATED in str(told.get(flag, ""))
    ]


def _apart(words: list[str], start: Started) -> _Told:
    acting: dict[str, Any] = {}
    dotted: dict[str, Any] = {}
    seen: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    model, unaffected, unplanned, unknown = "", list[str](), list[str](), list[str]()
    for i, (name, values) in enumerate(split_flags(words)):
        if i == 0:
            model, spare = (values[0], values[1:]) if values else ("", [])
            unknown += spare_words(spare, model)
            continue
        if older := older_flag(name, start.version):
            if older in ("rope-scaling", "rope-theta") and values:
                overrides[older.replace("-", "_")] = plain(values[0])
            else:
                (unaffected if older in IDLE_THEN else unplanned).append(f"--{older}{_of_then(older)}")
            continue
        flag, inner, negated = known_flag(name)
        check_age(flag, start.version)
        value, spare = flag_value(flag, vllm_flags()[flag], inner, negated, values)
        seen[flag] = value
        if spare and not model and UNSTATED not in spare[0]:
            model, spare = spare[0], spare[1:]
        unknown += spare_words(spare, model)
        if flag in ("model", "model-tag"):
            model = model or str(value)
        elif about := _about(flag, value, negated):
            unplanned.append(f"--{flag} ({about})")
        elif flag not in ACTS:
            check_pruning(flag, value)
            unaffected.append(f"--{flag}")
        elif flag in OF_A_MACHINE and UNSTATED in str(value):
            acting |= {} if flag == "data-parallel-size-local" else {flag: 0}
        elif inner:
            check_stated(f"--{flag}.{inner}", value, start)
            merge_into(dotted, {flag: value})
        else:
            check_stated(f"--{flag}", value, start)
            acting[flag] = value
    if overrides:
        acting["hf-overrides"] = {**object_of(acting.get("hf-overrides"), "hf-overrides"), **overrides}
    # vLLM's parser adds dotted ones last, in place of an object stated whole
    return _Told(model, acting | dotted, seen, unaffected, unplanned, unknown)


def _of_then(flag: str) -> str:
    """What became of a flag of an older version, where it is one that changed the plan."""
    return (
        "" if flag in IDLE_THEN else f" (of older versions{': ' if flag in GONE else ''}{GONE.get(flag, '')})"
    )


def _about(flag: str, value: Any, negated: bool | None) -> str:
    """What a flag changes that is not planned; empty for all others."""
    if flag == "kv-transfer-config" and connector_of(value) not in (None, "OffloadingConnector"):
        return f"connector {connector_of(value)}"
    if flag == "ec-transfer-config" and (own := own_connector(value)):
        return f"connector {own}, code of one's own"
    if flag in NOT_PLANNED and negated is None:
        return NOT_PLANNED[flag]
    return about_value(flag, value)


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
