"""`kvplan reconcile`, `why` and `compare-run`: what a real engine logged beside plan and simulation."""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from pydantic import ValidationError

from kvplan.calibrate.server.client import Server
from kvplan.cli.memory_commands import estimate_command
from kvplan.cli.options import FLAGS, SWITCH, print_json
from kvplan.cli.plots import check_plot, write_plot
from kvplan.cli.terminal import show
from kvplan.engines.flags import EntryPoint
from kvplan.ground.errors import KvplanError
from kvplan.ground.files import check_outputs, write_whole
from kvplan.models.load import load_model
from kvplan.observed.diagnosis.findings import find, read_text
from kvplan.observed.diagnosis.messages import Message
from kvplan.observed.load_lines import EngineLoad
from kvplan.observed.metrics_page import is_page, log_of, pages_of, read_page
from kvplan.observed.reader import file_lines
from kvplan.observed.reconciliation import Reconciliation, reconcile
from kvplan.observed.recorded_run import compare_runs, read_run
from kvplan.observed.startup import StartupLog, read_log


def reconcile_command(
    log: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    model: str | None = None,
    gpu: str | None = None,
    engine: str | None = None,
    entry_point: EntryPoint = "serve",
    args: FLAGS = None,
    save: str | None = None,
    hub: Annotated[bool, SWITCH] = False,
    json: Annotated[bool, SWITCH] = False,
) -> int:
    """A real engine's start-up log beside the plan, line by line; learns the overheads that it implies.

    Reads logs of vLLM (V0 and V1), SGLang and TensorRT-LLM. Only figures and known flags are taken from a log:
    keys and tokens in its command lines are neither shown nor stored. Exit code 1 when its figures exclude each
    other, or lie further from the plan than any overhead accounts for.

    For example:

        docker logs vllm 2>&1 | kvplan reconcile - --gpu h100

        kvplan reconcile start.log --model ./config.json --gpu l40s --save my-l40s.json

        kvplan estimate Qwen/Qwen3-8B --gpu l40s --max-model-len 32K --profile my-l40s.json

    Parameters
    ----------
    log
        A file, or - for standard input.
    model
        Bundled name, config.json or folder, where the log does not name a bundled model.
    gpu
        A name of `kvplan gpus`, where the log does not name its card.
    engine
        E.g. vllm@0.19, where the log does not print its version.
    entry_point
        serve (`vllm serve`) or llm (offline); their batch defaults differ.
    save
        Write the implied overheads as a profile for `estimate --profile`.
    hub
        Fetch the config from the Hugging Face hub if it is not bundled.
    json
        One JSON document on stdout.
    """
    check_outputs([log, model], {"--save": save})
    if save and Path(save).suffix != ".json":
        raise KvplanError(f"--save {save}: a profile's file name ends in .json")
    told = read_log(file_lines(log))
    name = model or (told.model if hub else None)
    spec = load_model(name, hub=hub) if name else None
    found = reconcile(told, model=spec, gpu=gpu, engine=engine, args=args, entry_point=entry_point)
    command = _command(found)
    if json:
        print_json({**found.to_dict(), "estimate_command": command})
    else:
        show([str(found)])
        if command:
            print(f"Keep them with --save PROFILE.json, then:\n{command}")
    if save:
        _save(save, _profile(found, Path(save).stem))
    return 0 if found.agrees else 1


def _profile(found: Reconciliation, name: str) -> str:
    return found.profile(name).model_dump_json(indent=1, exclude_defaults=True)


def _command(found: Reconciliation) -> str | None:
    """The estimate under the learned overheads, once it has been run; None where it does not run."""
    if found.overheads is None or not found.estimate_command():
        return None
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "learned.json"
        profile.write_text(_profile(found, "learned"), encoding="utf-8")
        words = shlex.split(found.estimate_command(str(profile)))[2:]
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                App(default_command=estimate_command)(
                    words, exit_on_error=False, print_error=False, result_action="return_value"
                )
        except (CycloptsError, ValidationError, KvplanError):
            return None
    return found.estimate_command()


def _save(name: str, content: str) -> None:
    path = Path(name)
    try:
        write_whole(path, content + "\n")
    except OSError as error:
        raise KvplanError(f"--save {name}: cannot be written ({error.strerror})") from None
    print(f"kvplan: overheads written to {path}", file=sys.stderr)


def why_command(
    source: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    model: str | None = None,
    gpu: str | None = None,
    engine: str | None = None,
    entry_point: EntryPoint = "serve",
    args: FLAGS = None,
    hub: Annotated[bool, SWITCH] = False,
    json: Annotated[bool, SWITCH] = False,
) -> int:
    """Why an engine does not start, holds less KV than planned, or keeps requests waiting; and what mends it.

    Reads what there is: a start-up log, an out-of-memory or "max seq len" message with or without its traceback, the
    lines of a serving engine, a page of vLLM's /metrics or its address. Causes come ranked, each with its figures
    and the flags that mend it; where model and card are known, every flag was planned again before it is printed.
    Exit code 0 when nothing is amiss, 1 when there is a cause.

    For example:

        docker logs vllm 2>&1 | kvplan why - --gpu l40s

        kvplan why start.log --model ./config.json --gpu rtx-4090

        kvplan why http://localhost:8000 --gpu h100

    Parameters
    ----------
    source
        A file, - for standard input, or the address of a running vLLM.
    model
        Bundled name, config.json or folder, where the text does not name a bundled model.
    gpu
        A name of `kvplan gpus`, where the text does not name its card.
    engine
        E.g. vllm@0.19, where the text does not print its version.
    entry_point
        serve (`vllm serve`) or llm (offline); their batch defaults differ.
    hub
        Fetch the config from the Hugging Face hub if it is not bundled.
    json
        One JSON document on stdout.
    """
    is_address = source.startswith(("http://", "https://"))
    log, messages, load = _live(source) if is_address else _read(source, engine)
    name = model or (log.model if hub else None)
    spec = load_model(name, hub=hub) if name else None
    found = find(log, messages, load, model=spec, gpu=gpu, engine=engine, args=args, entry_point=entry_point)
    if json:
        print_json(found.to_dict())
    else:
        show([str(found)])
    return 1 if found.causes else 0


def _live(address: str) -> tuple[StartupLog, tuple[Message, ...], EngineLoad | None]:
    """A running server's figures and load."""
    server = Server(address.removesuffix("/").removesuffix("/metrics"), timeout_s=10.0)
    page = read_page(server.get("/metrics"))
    try:
        facts = server.facts()
    except KvplanError:  # only its metrics are open to us
        return log_of(page), (), page.load
    return log_of(page, facts.engine_version, facts.max_model_len), (), page.load


def _read(source: str, engine: str | None) -> tuple[StartupLog, tuple[Message, ...], EngineLoad | None]:
    """A file's figures, complaints and load; a page of metrics has the last of its pages."""
    lines = tuple(file_lines(source))
    text = "\n".join(lines)
    if is_page(text):
        *_, last = pages_of(text)
        page = read_page(last)
        return log_of(page), (), page.load
    return read_text(lines, engine)


def compare_run_command(
    real: Path,
    result: Path,
    /,
    *,
    real_totals: Path | None = None,
    totals: Path | None = None,
    plot: Path | None = None,
    json: Annotated[bool, SWITCH] = False,
) -> int:
    """Compare a real run with a simulation of the same requests.

    For example:

        kvplan compare-run bench.jsonl records.csv --plot runs.svg

    Parameters
    ----------
    real
        The real run, one row per request: vllm bench serve's JSON (--save-detailed) or JSONL, or CSV with arrival_s,
        input_tokens, output_tokens, ttft_ms, e2e_ms.
    result
        The simulated one: what `kvplan simulate --records` wrote.
    real_totals
        JSON with num_preemptions and kv_peak_fraction of the real run.
    totals
        The same of the simulation: `kvplan simulate --json`.
    plot
        Draw simulated over real latencies: .svg, .png or .html.
    json
        One JSON document on stdout.
    """
    check_outputs([real, result, real_totals, totals], {"--plot": plot})
    check_plot(plot)
    found = compare_runs(read_run(real, real_totals), read_run(result, totals))
    write_plot(plot, "compare-run", found)
    if json:
        print_json(found.to_dict())
    else:
        show([str(found)])
    return 0
