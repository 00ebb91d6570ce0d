"""`kvplan plan`: one question, one answer, with its doubt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kvplan.cli.options import SWITCH, print_json
from kvplan.cli.plots import check_plot, check_report, write_plot, write_report
from kvplan.cli.progress import shown_progress
from kvplan.cli.terminal import show
from kvplan.ground.files import check_outputs, write_whole
from kvplan.scenario.schema import dump_scenario
from kvplan.search.planning import first_look, plan
from kvplan.search.question import ServingQuestion, make_scenario, read_cards


def plan_command(
    model: str,
    /,
    *,
    gpu: Annotated[tuple[str, ...], SWITCH] = (),
    question: Annotated[ServingQuestion | None, Parameter(name="*", group="The question")] = None,
    scenario: Path | None = None,
    report: Path | None = None,
    plot: Path | None = None,
    workers: int | None = None,
    json: Annotated[bool, SWITCH] = False,
    quiet: Annotated[bool, SWITCH] = False,
) -> int:
    """Answer one question: does it work, what to run, what it costs, how sure that is.

    For example:

        kvplan plan Qwen/QwQ-32B --gpu 2xh100 --users 500 --thinking 32K

        kvplan plan Qwen/Qwen3-8B --rate 5 --slo "visible<60s" --max-dollars-per-hour 20 --report plan.html

    Parameters
    ----------
    model
        A bundled name (`kvplan models`), a config.json, or a folder that holds one.
    gpu
        A card, as many as it takes; 2xh100: two that there are. Repeatable; default: h100, h200, b200, a100-80gb.
    scenario
        Write the scenario that the question stands for; `kvplan recommend` on it gives the same ranking.
    report
        Write the answer as one HTML page that needs no network.
    plot
        Draw speed against throughput of the deployments: .svg, .png or .html.
    workers
        Processes; one per core by default.
    json
        One JSON document on stdout.
    quiet
        No progress on stderr.
    """
    question = question or ServingQuestion()
    cards = read_cards(gpu)
    stands_for = make_scenario(model, cards, question)
    check_plot(plot)
    check_report(report)
    check_outputs([model], {"--scenario": scenario, "--report": report, "--plot": plot})
    if scenario is not None:
        write_whole(scenario, dump_scenario(stands_for))
    if not quiet:
        print(first_look(model, cards, question), file=sys.stderr, flush=True)
    with shown_progress("candidates", quiet=quiet) as progress:
        answer = plan(model, gpu, question, workers=workers, progress=progress)
    write_plot(plot, "recommend", answer.found)
    write_report(report, answer)
    if json:
        print_json(answer.to_dict())
    else:
        show(answer.parts())
    return answer.exit_code
