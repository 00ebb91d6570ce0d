"""`kvplan estimate` and `serve-command`: does it fit, where the memory goes, what would fit; what serves it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ValidationError

from kvplan.cli.options import DEMAND, FLAGS, SWITCH, print_json
from kvplan.cli.plots import check_plot, write_plot
from kvplan.cli.terminal import show
from kvplan.engines.cards import cards
from kvplan.engines.flags import EngineArgs, EntryPoint, parse_engine
from kvplan.engines.spelling import unspoken
from kvplan.ground.config import complaint
from kvplan.ground.errors import KvplanError
from kvplan.ground.files import check_outputs
from kvplan.ground.gpu import GpuSpec, split_count
from kvplan.memory.answers import Option, Plan
from kvplan.memory.demand import Demand
from kvplan.memory.forward import estimate
from kvplan.memory.inverse import what_would_fit
from kvplan.memory.serve_command import shell_command, with_length, yaml_config
from kvplan.models.load import find_bundled, load_model, path_exists
from kvplan.profiles.memory_profile import MemoryProfile

if TYPE_CHECKING:
    from kvplan.engines.told import Command


def estimate_command(
    model: str,
    /,
    *command: str,
    gpu: str = "h100",
    engine: str | None = None,
    entry_point: EntryPoint = "serve",
    args: FLAGS = None,
    demand: DEMAND = None,
    users: str | None = None,
    colocate: Annotated[tuple[str, ...], SWITCH] = (),
    profile: str | None = None,
    price_per_hour: float | None = None,
    hub: Annotated[bool, SWITCH] = False,
    plot: Path | None = None,
    json: Annotated[bool, SWITCH] = False,
) -> int:
    """Does it fit: where the memory goes, what the engine would print, how many traces live at once.

    For example:

        kvplan estimate Qwen/Qwen3-8B --gpu h100 --input-len 512 --output-len 16K --num-samples 32

        kvplan estimate ./my-model --gpu local --max-model-len -1

        kvplan estimate deepseek-ai/DeepSeek-R1 --gpu h200 -tp 8 --engine vllm@0.19 --json

        kvplan estimate --gpu 8xh200 -- vllm serve deepseek-ai/DeepSeek-R1 -tp 8 --kv-cache-dtype fp8

    Parameters
    ----------
    model
        A bundled name (`kvplan models`), a config.json, or a folder that holds one.
    command
        Behind `--`, the engine's own command instead of a model: vllm serve, sglang.launch_server, trtllm-serve, a
        docker line, or one quoted text with its exports.
    gpu
        A name of `kvplan gpus`, `local` to ask this machine's card, `gib=20,gbps=672,tflops=44` or a YAML file of
        one that is not there; `2xh100` or `H100:2` for two of them; a machine such as `p5.48xlarge`.
    engine
        vllm, sglang or tensorrt-llm, with an optional @version; left out: the command's, else vllm.
    entry_point
        serve (`vllm serve`) or llm (offline); their batch defaults differ.
    users
        People who all wait for an answer at one moment, the same as --num-requests; `kvplan plan` lets them pause.
    colocate
        ROLE=MODEL of another model on the same GPUs; roles: draft, reward, reference, critic. Repeatable.
    profile
        A profile (name or file) whose memory section replaces the bundled overheads.
    price_per_hour
        US dollars for one GPU-hour, instead of the table's.
    hub
        Fetch the config from the Hugging Face hub if it is not bundled.
    plot
        Draw the memory of a GPU: .svg, .png or .html.
    json
        One JSON document on stdout.
    """
    check_plot(plot)
    check_outputs([model], {"--plot": plot})
    if users is not None:
        demand = _at_once(demand or Demand(), users)
    told, colocated = None, read_colocate(colocate)
    overrides: Mapping[str, Any] = {}
    if command or " " in model.strip() or model.startswith("["):
        told = _pasted(model, command)
        colocated = _draft_of(told) | colocated
        model, overrides, args = (
            told.model,
            told.hf_overrides,
            _over(_without_unknown_draft(told, colocated), args),
        )
    engine = engine or (told.engine_asked if told else "vllm")
    card, args = cards(gpu, args)
    elsewhere = told.hf_config_path if told else ""
    spec = load_model(model, hub=hub, hf_overrides=overrides, hf_config_path=elsewhere)
    plan = estimate(
        spec, priced(card, price_per_hour), args, engine=engine,
        demand=demand, entry_point=entry_point, colocate=colocated,
        profile=read_overheads(profile, engine) if profile else None,
    )  # fmt: skip
    options = what_would_fit(plan)
    write_plot(plot, "estimate", plan)
    if not json:
        show([*plan.parts(options), *_command_lines(told)])
        return 0 if plan.fits else 1
    own = [f"--colocate={role}={name}" for role, name in colocated.items()]
    own += [f"--profile={profile}"] if profile else []
    own += [f"--engine={engine}", f"--entry-point={entry_point}", *(["--hub"] if hub else [])]
    is_whole = not overrides and not elsewhere  # else no line of our own flags says the same
    document = plan.to_dict(options)
    document["what_would_fit"] = [
        option.to_dict()
        | {"command": estimate_line([model, *own], gpu, price_per_hour, plan, option) if is_whole else None}
        for option in options
    ]
    print_json(document | ({"command": _command_facts(told)} if told else {}))
    return 0 if plan.fits else 1


def estimate_line(own: Sequence[str], gpu: str, price: float | None, plan: Plan, option: Option) -> str:
    """The whole command that asks for an option: this command's own words, then all flags, each once."""
    now = option.plan.question
    other_card = now.gpu != plan.question.gpu
    words = [*own, f"--gpu={now.gpu.name if other_card else split_count(gpu)[1]}"]
    words += [] if price is None or other_card else [f"--price-per-hour={price!r}"]
    for name, value in (
        now.args.model_dump(exclude_defaults=True) | now.demand.model_dump(exclude_defaults=True)
    ).items():
        words += _words("--" + name.replace("_", "-"), value)
    return shlex.join(["kvplan", "estimate", *words])


def _words(flag: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag.strip('-')}"]
    return [f"{flag}={one}" for one in (value if isinstance(value, tuple) else (value,))]


def _over(pasted: EngineArgs, own: EngineArgs | None) -> EngineArgs:
    """The command's flags, and over them kvplan's own."""
    return pasted.model_copy(update=own.model_dump(exclude_defaults=True)) if own else pasted


def _pasted(first: str, others: tuple[str, ...]) -> Command:
    from kvplan.engines.command import read_command  # only where one is pasted: a cold start stays short
    from kvplan.engines.pasted.started import NoStart

    try:
        told = read_command((first, *others))
        if others and first != told.model and find_bundled(first):
            raise KvplanError(f"{first} or {told.model}: the command names a model of its own; leave one out")
        return told
    except NoStart:
        if others:
            raise KvplanError(
                f"unexpected argument {others[0]!r}: name one model, or paste what starts an engine"
                " (vllm serve, sglang.launch_server, trtllm-serve)"
            ) from None
        raise


def _draft_of(told: Command) -> dict[str, str]:
    """The model that drafts, where kvplan knows it."""
    known = told.draft and (find_bundled(told.draft) or path_exists(Path(told.draft)))
    return {"draft": told.draft} if known else {}


def _without_unknown_draft(told: Command, colocated: Mapping[str, str]) -> EngineArgs:
    """The flags; without speculation where the model that drafts is left out."""
    if not told.draft or "draft" in colocated:
        return told.args
    none = {"num_speculative_tokens": 0, "speculative_method": "mtp", "speculative_config": None}
    return told.args.model_copy(update=none)


def _command_facts(told: Command) -> dict[str, object]:
    """What of the command acts and what does not."""
    return {
        "engine": told.engine,
        "model": told.model,
        "no_effect": list(told.no_effect),
        "not_planned": list(told.not_planned),
        "environment": sorted(told.environment),
        "draft_left_out": told.draft if told.draft and not _draft_of(told) else None,
    }


def _at_once(demand: Demand, users: str) -> Demand:
    """The load of so many users. Raises KvplanError that names --users for what is no count."""
    try:
        return Demand.model_validate(demand.model_dump() | {"num_requests": users})
    except ValidationError as error:
        raise KvplanError(complaint(error, flag=True).replace("--num-requests", "--users", 1)) from None


def _command_lines(told: Command | None) -> list[str]:
    """The same for people."""
    if told is None:
        return []
    lines = [*told.notes]
    if told.draft and not _draft_of(told):
        lines.append(f"Left out, no config of it is bundled: {told.draft}, which drafts")
    if told.not_planned:
        lines.append(f"Changes memory or time, not planned: {', '.join(told.not_planned)}")
    if told.no_effect:
        lines.append(f"No effect on the plan: {', '.join(told.no_effect)}")
    if told.environment and told.engine != "vllm":
        lines.append(f"Environment, not read: {', '.join(sorted(told.environment))}")
    return ["", *lines] if lines else []


def read_colocate(pairs: tuple[str, ...]) -> dict[str, str]:
    """Read ROLE=MODEL pairs."""
    found: dict[str, str] = {}
    for pair in pairs:
        role, equals, model = pair.partition("=")
        if not equals or not role or not model:
            raise KvplanError(f"--colocate {pair!r}: write ROLE=MODEL, e.g. reward=Qwen/Qwen2.5-Math-RM-72B")
        if role in found:
            raise KvplanError(f"--colocate names {role!r} twice")
        found[role] = model
    return found


def read_overheads(name: str, engine: str) -> MemoryProfile:
    """The memory section of a profile, which must be the asked engine's."""
    from kvplan.profiles.profile import load_profile

    memory = load_profile(name).memory
    if memory is None:
        raise KvplanError(
            f"--profile {name}: has no memory section, only step times; leave it out to use the bundled one"
        )
    if memory.engine != parse_engine(engine).engine:
        raise KvplanError(f"--profile {name}: holds overheads of {memory.engine}, not of {engine}")
    return memory


def priced(gpu: GpuSpec, price_per_hour: float | None) -> GpuSpec:
    """The card at the user's price."""
    if price_per_hour is None:
        return gpu
    if not 0 <= price_per_hour < 1e6:
        raise KvplanError(f"--price-per-hour {price_per_hour:g}: US dollars, 0 or more")
    return gpu.model_copy(update={"price_per_hour": price_per_hour, "price_source": "--price-per-hour"})


def serve_command(
    model: str,
    /,
    *,
    gpu: str = "h100",
    engine: str = "vllm",
    args: FLAGS = None,
    demand: DEMAND = None,
    colocate: Annotated[tuple[str, ...], SWITCH] = (),
    format: Literal["shell", "yaml"] = "shell",
    hub: Annotated[bool, SWITCH] = False,
) -> int:
    """Print the command that serves the plan: only the flags that differ from the engine's defaults.

    Exit code 1, with the reason on stderr, when the plan does not fit; nothing is printed of one that does not start.

    For example:

        kvplan serve-command Qwen/Qwen3-8B --gpu h100 --input-len 512 --output-len 16K

        kvplan serve-command Qwen/Qwen3-8B --gpu h100 -tp 2 --format yaml > serve.yaml

        kvplan serve-command Qwen/Qwen3-8B --gpu h100 --engine sglang --max-num-seqs 64

    Parameters
    ----------
    model
        A bundled name, a config.json, or a folder that holds one.
    gpu
        A name of `kvplan gpus`, or `local`.
    engine
        vllm, sglang or tensorrt-llm, with an optional @version.
    colocate
        ROLE=MODEL of another model on the same GPUs, as for `estimate`; the draft is part of the command.
    format
        shell, or yaml: a file for `vllm serve --config`, SGLang's `--config`, or what TensorRT-LLM takes only from
        `--extra_llm_api_options`.
    hub
        Fetch the config from the Hugging Face hub if it is not bundled.
    """
    card, args = cards(gpu, args)
    plan = estimate(
        load_model(model, hub=hub), card, args, engine=engine, demand=demand,
        colocate=read_colocate(colocate),
    )  # fmt: skip
    if not plan.serves:
        print(f"kvplan: {plan.reason}", file=sys.stderr)
        return 1
    question = plan.question
    flags = with_length(question.args, question.demand)
    serving, moe = question.engine.engine, question.model.is_moe
    write = yaml_config if format == "yaml" else shell_command
    print(write(question.model, flags, serving, question.draft, experts=moe))
    if question.model.planned_as:
        print(f"kvplan: {question.model.name} is planned as {question.model.planned_as}", file=sys.stderr)
    missing = [flag for flag in unspoken(flags, serving) if (serving, flag) != ("vllm", "--env")]
    if missing:
        print(f"kvplan: left out, {serving} has no such flag: {', '.join(missing)}", file=sys.stderr)
    if plan.fits:
        return 0
    print(f"kvplan: {plan.reason}", file=sys.stderr)
    return 1
