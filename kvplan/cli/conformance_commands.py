"""`kvplan conformance`: scenarios on the engines' twins, and logs held to them."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from kvplan.cli.options import SWITCH
from kvplan.conformance.command import conform
from kvplan.conformance.twins import EngineName


def conformance_command(
    *paths: str,
    engine: EngineName = "vllm",
    engine_version: str | None = None,
    is_async: Annotated[bool, Parameter(name=("--async", "--overlap"), negative="")] = False,
    leap: Annotated[bool, SWITCH] = False,
    truth: str | None = None,
    output: Annotated[str | None, Parameter(name=("--output", "-o"))] = None,
    summary: Annotated[bool, SWITCH] = False,
    json: Annotated[bool, SWITCH] = False,
) -> int:
    """Schedule a scenario as vLLM or SGLang does, or hold logs to their schedulers, decision by decision.

    A scenario: its log, one JSON object per step, and hashes. Logs and folders of them: each is run again on the twin
    of the engine it is of, or with --truth compared with that engine's own. Without a path: which twins there are.
    tests/conformance/README.md has the format. Exit code 1 when a log differs or a run is stuck for want of memory.

    For example:

        kvplan conformance my_scenario.json --engine-version 0.33 -o my.jsonl

        kvplan conformance my.jsonl

        kvplan conformance tests/conformance

        kvplan conformance their_logs/ --truth tests/conformance

    Parameters
    ----------
    paths
        A scenario (.json), or logs (.jsonl) and folders of them.
    engine
        Whose scheduler runs a scenario.
    engine_version
        Of the engine: vllm 0.32, sglang 0.5.23 if not told.
    is_async
        Asynchronous scheduling; SGLang's overlap loop.
    leap
        vLLM's leaping scheduler; no block counts then.
    truth
        Compare logs with the engine's own of this folder, not with the twin.
    output
        Write the log there and print the totals only.
    summary
        Print the totals only.
    json
        Verdicts as one JSON document.
    """
    return conform(paths, engine, engine_version, is_async, leap, truth, output, summary, json)
