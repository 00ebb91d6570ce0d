"""docs/reference.md, made from the code: commands and flags, scenario keys, JSON keys, exit codes.

`KVPLAN_WRITE_DOCS=1 pytest tests/test_reference.py` writes it. What a later change adds or takes away then shows in
the page's history.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from inspect import Parameter
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from places import FIXTURES
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from kvplan.cli.main import COMMANDS, build_app, run
from kvplan.conformance.__main__ import make_parser
from kvplan.engines.flags import EngineArgs
from kvplan.engines.vllm_parser import short_flags
from kvplan.ground.limits import Limit
from kvplan.memory.demand import Demand
from kvplan.profiles.profile import Profile
from kvplan.scenario.schema import Scenario
from kvplan.simulation.records import CSV_COLUMNS, FINISH_REASONS
from kvplan.workload.strategies.catalog import STRATEGIES, parameters

EXIT_1 = {
    "plan": "the cards that there are do not carry the load, or no deployment keeps the targets",
    "estimate": "the engine does not start, or the asked traces do not fit at once",
    "serve-command": "the plan does not fit; the command is printed if the traces are served all the same",
    "simulate": "a target is missed, a request rejected, nothing served, or the run thrashes",
    "compare": "no strategy keeps the limits",
    "sweep": "every point failed",
    "recommend": "no deployment keeps the targets",
    "conformance": "a log differs, or a run is stuck for want of memory",
    "reconcile": "figures of the log exclude each other",
    "list": "no name of that kind contains the pattern",
    "why": "a cause was found",
    "watch": "a limit is crossed",
    "models": "no bundled model's (or architecture's) name contains the pattern",
    "support": "the model is refused",
}
"""What exit code 1 means; commands not named here do not end with it."""

SCENARIO = {"inputs": "object: the scenario, defaults filled in"}
FOLDED = {
    "estimate": {"inputs.colocate": "object: role -> model"},
    "simulate": SCENARIO
    | {
        "engines": "object: deployment -> the scheduler's settings",
        "intervals": "null or object: key -> [5th, 95th percentile]",
        "modes": "object: deployment -> leap, leap by visits or step by step, and why",
    },
    "compare": SCENARIO
    | {"recommended_thinking_budget": "object: p99_of_traces, and of budgets cost_optimal -> tokens"},
    "recommend": SCENARIO
    | {
        "candidates[].settings": "object: scenario key -> value",
        "candidates[].day": "null or a schedule of hours",
    },
    "plan": {"recommendation": "object: the document of `kvplan recommend`"},
    "list": {},
    "show": {"is": "object or text: what the name stands for"},
    "sweep": {},
    "compare-run": {"per_request_mape": "object: metric -> number"},
    "conformance": {},
    "reconcile": {
        "log.figures": "object: figure -> number",
        "log.flags": "object: flag -> value",
        "overheads": "null or object: the memory section of a profile",
    },
    "why": {"messages[].figures": "object: figure -> number"},
    "watch": {
        "thinking_budget": "null or object: tokens, share_cut, resident_tokens",
        "tokens.mean_thinking": "null or number",
    },
    "models": {},
    "gpus": {"gpus[].dense_tflops": "object: format -> number"},
    "calibrate": {
        "server": "null or object: what a live server says of its KV cache",
        "coefficients": "object: coefficient -> number",
        "assumed": "object: coefficient -> reason",
        "ranges": "object: what -> [low, high]",
        "batches": "null or object: batches that transformers ran, and the profile's errors on them",
        "memory": "null or object: overheads for estimate, each with value, low, high, source",
        "skipped": "object: reason -> integer",
    },
}
"""Command -> objects whose keys depend on the question: they are told in words."""


def table(head: str, rows: Iterable[Iterable[object]]) -> str:
    """A markdown table; bars inside a cell are escaped."""
    columns = head.split(", ")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _code(value: object) -> str:
    return f"`{value}`"


# Commands


def command_section(name: str) -> str:
    """One command: what it does, and its arguments and flags; the engine's flags stand elsewhere."""
    arguments = build_app(name)[name].assemble_argument_collection(parse_docstring=True)
    engine = {_flag(field) for field in EngineArgs.model_fields}
    own = [a for a in arguments if a.name != "*" and a.name not in engine]
    about = COMMANDS[name][1]
    if len(own) < len([a for a in arguments if a.name != "*"]):
        about += " Takes [the engine's flags](#flags-of-the-engine) too."
    return f"### kvplan {name}\n\n{about}\n\n" + table(
        "argument, type, default, meaning", map(_argument, own)
    )


def engine_flags() -> str:
    """What `estimate`, `serve-command` and `reconcile` share; also the keys of `engine:` in a scenario."""
    engine = {_flag(field) for field in EngineArgs.model_fields}
    arguments = build_app()["estimate"].assemble_argument_collection(parse_docstring=True)
    rows = [_argument(a) for a in arguments if a.name in engine]
    return "### Flags of the engine\n\n" + table("argument, type, default, meaning", rows)


def conformance_section() -> str:
    """`python -m kvplan.conformance`, an argparse command."""
    parser = make_parser()
    rows = [
        (
            ", ".join(map(_code, a.option_strings or [a.dest.upper()])),
            ", ".join(map(_code, a.choices or ())) or ("switch" if a.nargs == 0 else "text"),
            "needed" if a.required else "" if a.default in (None, False) else _code(a.default),
            a.help or "",
        )
        for a in parser._actions
        if a.dest != "help"
    ]
    head = table("argument, type, default, meaning", rows)
    return f"### {parser.prog}\n\n{parser.description}\n\n{head}"


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _argument(argument: Any) -> list[str]:
    names = [n for n in argument.names if not n.startswith("--empty-")]
    names += [short for short, long in short_flags().items() if f"--{long}" in names]
    default = argument.field_info.default
    if argument.required:
        said = "needed"
    else:
        said = "" if default in (Parameter.empty, PydanticUndefined, "", None, ()) else _code(default)
    meaning = argument.parameter.help or ""
    return [", ".join(map(_code, names)), type_name(argument.hint), said, meaning]


def type_name(hint: Any) -> str:
    """A type as a user types a value of it."""
    if hint is type(None):
        return ""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(_code(a) for a in args)
    if origin is tuple:
        return f"{type_name(args[0])}, repeatable"
    if hasattr(hint, "__metadata__"):
        return type_name(args[0])
    if args and origin is not dict:
        return " or ".join(filter(None, map(type_name, args)))
    names = {"str": "text", "int": "integer", "float": "number", "bool": "switch", "Path": "file"}
    name = getattr(hint, "__name__", str(hint))
    return names.get(name, name)


# Scenario keys


def schema_sections(model: type[BaseModel], name: str) -> str:
    """A table per config class, from its JSON schema: the class itself first, then those it refers to."""
    schema = model.model_json_schema()
    classes = {name: schema, **dict(sorted(schema.pop("$defs", {}).items()))}
    return "\n\n".join(class_table(title, spec) for title, spec in classes.items())


def class_table(title: str, spec: dict[str, Any]) -> str:
    needed = set(spec.get("required", ()))
    rows = [
        (
            _code(key),
            schema_type(inner),
            "needed" if key in needed else schema_default(inner),
            inner.get("description", ""),
        )
        for key, inner in spec.get("properties", {}).items()
    ]
    about = spec.get("description", "").strip()
    return "\n\n".join(filter(None, (f"#### {title}", about, table("key, type, default, meaning", rows))))


LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:g}"


def schema_type(spec: dict[str, Any]) -> str:
    """A type with its limits, in words."""
    if "$ref" in spec:
        name = spec["$ref"].rsplit("/")[-1]
        return f"[{name}](#{name.lower()})"
    if "const" in spec:
        return _code(spec["const"])
    if "enum" in spec:
        return ", ".join(_code(v) for v in spec["enum"])
    for several in ("anyOf", "oneOf", "allOf"):
        if several in spec:
            return " or ".join(schema_type(s) for s in spec[several] if s.get("type") != "null")
    kind = spec.get("type", "any")
    if kind == "array":
        if "prefixItems" in spec:
            return f"[{', '.join(map(schema_type, spec['prefixItems']))}]"
        inside = spec.get("items") or {}
        return f"list of {schema_type(inside)}" if inside else "list"
    if kind == "object":
        values = spec.get("additionalProperties")
        return f"name -> {schema_type(values)}" if isinstance(values, dict) else "mapping"
    limits = [f"{sign} {_number(spec[key])}" for key, sign in LIMITS.items() if key in spec]
    return " ".join([{"string": "text", "boolean": "true, false"}.get(kind, kind), ", ".join(limits)]).strip()


def schema_default(spec: dict[str, Any]) -> str:
    default = spec.get("default")
    if default is None:
        return "" if "default" not in spec else "none"
    return "its own" if isinstance(default, dict) else _code(json.dumps(default))


def strategy_table() -> str:
    rows = []
    for name in STRATEGIES:
        for key, inner in parameters(name).model_json_schema()["properties"].items():
            rows.append((_code(name), _code(key), schema_type(inner), schema_default(inner) or "needed"))
    return table("strategy, parameter, type, default", rows)


# JSON documents


Row = tuple[str, str]

NAMES = {"NoneType": "null", "str": "text", "int": "integer", "float": "number", "bool": "true, false"}


def keys_of(values: list[Any], folded: dict[str, str], path: str = "") -> Iterator[Row]:
    """(key path, types) of all that stands at a path in some documents; items of a list are taken together."""
    items = [item for value in values if isinstance(value, list) for item in value]
    inside = [item for item in items if isinstance(item, dict)]
    objects = [value for value in values if isinstance(value, dict)]
    if path:
        yield _code(path), folded.get(path) or " or ".join(sorted({_json_type(v) for v in values}))
    if path in folded:
        return
    if inside:
        yield from keys_of(inside, folded, f"{path}[]")
    for key in dict.fromkeys(key for value in objects for key in value):
        below = f"{path}.{key}".lstrip(".")
        yield from keys_of([value[key] for value in objects if key in value], folded, below)


def _json_type(value: Any) -> str:
    if isinstance(value, dict):
        return "object"
    if isinstance(value, list):
        inside = sorted({_json_type(item) for item in value})
        return f"list of {' or '.join(inside)}" if inside else "list"
    return NAMES[type(value).__name__]


def json_section(name: str, documents: list[Any]) -> str:
    question = {_code(f"inputs.{flag}") for flag in (*EngineArgs.model_fields, *Demand.model_fields)}
    rows = [row for row in keys_of(documents, FOLDED[name]) if row[0] not in question]
    return f"#### kvplan {name} --json\n\n" + table("key, type", rows)


PRICED = """{model: Qwen/Qwen3-8B, gpu: h100, problems: {num_problems: 2, quality: assumed-u-shape, strategies: [
single_pass, {strategy: self_consistency, n: 3}, {strategy: best_of_n, n: 2}]}}"""
"""Brought to one price, over which the first has no knob."""


def documents_of(folder: Path) -> dict[str, list[Any]]:
    """Documents of small questions to each command, chosen so that every key has its types."""
    real, simulated = folder / "real.csv", folder / "simulated.csv"
    told, prices = folder / "told.yaml", folder / "prices.yaml"
    told.write_text(PRICED)
    prices.write_text(
        "routes: [{name: small, share: 0.9, usd_per_request: 0.001}, {name: large, share: 0.1, usd_per_request: 0.05}]"
    )
    real.write_text(
        "arrival_s,input_tokens,output_tokens,ttft_ms,e2e_ms\n0,100,11,50,550\n1,200,21,80,1480\n"
    )
    simulated.write_text(real.read_text())
    log = FIXTURES / "logs" / "vllm-0.11-tp8-docker.txt"
    quick = "--set workload.num_requests=5 --quiet"
    watched = FIXTURES / "watch" / "rollout"
    asked = {
        "estimate": [
            "Qwen/Qwen3-8B --gpu h100 --output-len 8K --num-samples 8",
            "Qwen/Qwen3-8B --gpu rtx-4090",
            "meta-llama/Llama-3.1-70B --gpu h100",
        ],
        "simulate": [
            f"chat {quick}",
            f"long_thinking {quick}",
            "strategy_best_of_n --set problems.num_problems=2 --quiet",
        ],
        "compare": [
            "strategy_best_of_n --set problems.num_problems=2 --set problems.api_model=deepseek-r1 --quiet",
            f"{told} --no-range --max-draws 400 --equal tokens --frontier --prices {prices} --quiet",
        ],
        "sweep": [
            f"chat {quick} --over gpu=h100,rtx-3090 --workers 1",
            "strategy_best_of_n --set problems.num_problems=2 --quiet --over gpu=h100 --workers 1",
        ],
        "recommend": [
            f"chat {quick} --rate 1 --over gpu=l40s,rtx-3090 --workers 1 --set search.span=1 --set search.seeds=1"
        ],
        "plan": [
            "Qwen/Qwen3-8B --gpu 1xl40s --users 99 --pause 1 --thinking 1K --prompt 100 --answer 50 --quiet --workers 1"
        ],
        "compare-run": [f"{real} {simulated}"],
        "conformance": [str(_log(folder))],
        "reconcile": [f"{log} --gpu h200"],
        "list": ["", "strategies best"],
        "show": ["best_of_n"],
        "why": [
            f"{FIXTURES / 'why' / 'states-l40s.txt'} --gpu l40s",
            f"{FIXTURES / 'why' / 'full.txt'}",
            f"{log} --gpu h200",
        ],
        "watch": [
            f"{watched}.prom {watched}.jsonl --scenario chat --max-kv 0.5 --gpu h100 --model Qwen/Qwen3-8B",
            f"{watched}.jsonl",
        ],
        "models": ["Qwen3-8B"],
        "gpus": [""],
    }
    return {
        name: [_document([name, *words.split(), "--json"]) for words in questions]
        for name, questions in asked.items()
    }


def _log(folder: Path) -> Path:
    """A log of a small scenario."""
    request = {"id": "a", "prompt": [{"len": 9}], "output_len": 3}
    scenario, log = folder / "scenario.json", folder / "log.jsonl"
    scenario.write_text(json.dumps({"num_gpu_blocks": 20, "max_model_len": 40, "requests": [request]}))
    with redirect_stdout(io.StringIO()):
        assert run(["conformance", str(scenario), "-o", str(log)]) == 0
    return log


def _document(words: list[str]) -> Any:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(words)
    assert code in (0, 1), f"{words}: {err.getvalue()}"
    return json.loads(out.getvalue())


# Sections


def commands() -> str:
    return "\n\n".join(
        ["## Commands", *map(command_section, COMMANDS), engine_flags(), conformance_section()]
    )


def exit_codes() -> str:
    codes = [
        (0, "it fits, or it is done"),
        (1, "; ".join(f"{_code(name)}: {why}" for name, why in EXIT_1.items())),
        (2, "bad input: one line on stderr says what was asked, what there is and what would do"),
        (130, "interrupted (Ctrl-C); what was done is printed"),
    ]
    return "## Exit codes\n\n" + table("code, meaning", codes)


def scenario_keys() -> str:
    return f"""## Scenario keys

A scenario is a YAML file; `kvplan simulate FILE --set key.path=value` changes a key. Where a type is a link, its keys
follow in a table of their own; "its own" means the defaults of that table.

{schema_sections(Scenario, "Scenario")}

### Parameters of strategies

{strategy_table()}"""


def profile_keys() -> str:
    return f"## Keys of a profile\n\nAlso the document of `kvplan fit --json`.\n\n{schema_sections(Profile, 'Profile')}"


def json_keys(folder: Path) -> str:
    sections = [json_section(name, found) for name, found in documents_of(folder).items()]
    columns = ", ".join(_code(name) for name in CSV_COLUMNS)
    return "\n\n".join(
        [
            """## JSON keys

`[]` is any item of a list. Units are in the names; bytes are integers, `_s` seconds. What has no value is null. The
documents were those of a few questions; `inputs` of `estimate` and `reconcile` also has every flag of the engine and of
the load, as resolved, under its name with underscores.""",
            f"`limited_by` is one of {', '.join(map(_code, Limit))}.",
            f"`finish_reasons`, and `finish_reason` of a record: {', '.join(map(_code, FINISH_REASONS))}.",
            *sections,
            f"#### kvplan simulate --records\n\nOne row per request: {columns}.",
        ]
    )
