"""docs/validation.md: its table is made from the files beside it, and nobody types a figure twice."""

from __future__ import annotations

import re
from statistics import median

from places import ROOT
from validation import DOCS, section

PAGE = DOCS / "validation.md"


def told(name: str) -> str:
    """One of the files beside the page."""
    return (DOCS / "validation" / f"{name}.md").read_text()


def found(name: str, pattern: str) -> tuple[str, ...]:
    """The groups of a pattern that stands in a file exactly once."""
    matches = list(re.finditer(pattern, told(name)))
    assert len(matches) == 1, f"docs/validation/{name}.md has {len(matches)} of {pattern!r}"
    return matches[0].groups()


def rows(name: str, after: str = "") -> list[list[str]]:
    """The cells of the first table of a file, or of the first one after some words; no heading."""
    text = told(name)
    lines = text[text.index(after) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    stop = next(i for i, line in enumerate([*lines, ""]) if i > start and not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start + 1 : stop]]


def percent(cell: str) -> float:
    return float(cell.removesuffix("%")) / 100


def layout() -> tuple[str, str]:
    below, equal, of = map(int, found("layout", r"Besides the (\d+) below, (\d+) of (\d+) further cases"))
    cases = rows("layout")
    assert len(cases) == below
    equal += sum(row[-1] == "equal" for row in cases)
    return f"{equal:,} of {below + of:,} cases equal", "none" if equal == below + of else "see the table"


def weights() -> tuple[str, str]:
    [totals] = found("weights", r"Parameter totals: (\d+) checkpoints")
    [ranks] = found("weights", r"Bytes on one rank: (\d+) cases")
    middle, worst = found("weights", r"median error (\S+%), worst (\S+%)\.")
    return f"{totals} totals and {ranks} ranks equal; logs {middle} in the median", worst


def blocks() -> tuple[str, str]:
    cases = rows("memory-blocks")
    others = {row[0].split(",")[0] for row in cases if row[-1] != "equal"}
    assert all("refused by name" in row[2] for row in cases if row[-1] != "equal")
    return (
        f"{sum(r[-1] == 'equal' for r in cases)} of {len(cases)} logs equal",
        f"refused: {', '.join(others)}",
    )


def pool() -> tuple[str, str]:
    num_logs, middle, worst = found("memory-pool", r"all: (\d+) logs, median (\S+%), .*?worst (\S+%);")
    return f"{middle} in the median of {num_logs} logs", worst


def other_engines() -> tuple[str, str]:
    cases = rows("memory-other-engines")
    printed = [row[2] for row in cases if row[2] != "no pool printed"]
    equal = sum(cell.endswith("equal") for cell in printed)
    errors = {row[0]: percent(row[3].split("(")[1].rstrip(")")) for row in cases}
    worst = max(errors, key=lambda name: abs(errors[name]))
    [middle] = found("memory-other-engines", r"Median of the last column: (\S+%)\.")
    return (
        f"{equal} of {len(printed)} printed pools equal; from flags alone {middle} in the median",
        f"{errors[worst]:+.0%}: {worst.split('/')[-1]}",
    )


def scheduler() -> tuple[str, str]:
    scenarios, logs = found("scheduler", r"(\d+) scenarios, each with [\w ]+: (\d+) logs")
    runs = rows("scheduler", "Random scenarios")
    random, differing = (sum(int(row[i].replace(",", "")) for row in runs) for i in (1, 4))
    return (
        f"{logs} logs of {scenarios} scenarios and {random:,} random logs, every step",
        f"{differing} differ",
    )


def offloading() -> tuple[str, str]:
    scenarios, logs = found("offloading", r"(\d+) scenarios, synchronous and asynchronous: (\d+) logs")
    runs = rows("offloading", "Random engines")
    random, differing = (sum(int(row[i].replace(",", "")) for row in runs) for i in (1, 5))
    return (
        f"{logs} logs of {scenarios} scenarios and {random:,} random logs, every step",
        f"{differing} differ",
    )


def versions() -> tuple[str, str]:
    number, first, last = found("versions", r"(\d+) versions from (\S+) to (\S+) were run")
    logs = sum(int(row[2]) + int(row[4]) for row in rows("versions", "What a version is held to"))
    differing = sum(int(row[4].replace(",", "")) for row in rows("scheduler", "Random scenarios"))
    return f"{logs:,} logs kept, {number} versions from {first} to {last} run", f"{differing} differ"


def sglang() -> tuple[str, str]:
    scenarios, logs = found("scheduler-sglang", r"(\d+) scenarios in both event loops: (\d+) logs")
    [random] = found("scheduler-sglang", r"(\d+) random scenarios with")
    return f"{logs} logs of {scenarios} scenarios and {random} random scenarios, every pass", "none differs"


def kernels() -> tuple[str, str]:
    cases = rows("step-time")
    assert len(cases[0]) == 8
    worst = max(cases, key=lambda row: percent(row[5]))
    middle = median(percent(row[5]) for row in cases)
    return f"{middle:.1%} is the middle of {len(cases)} medians", f"{worst[5]}: {worst[2]} of {worst[0]}"


def sums() -> tuple[str, str]:
    cases = [row for row in rows("kernels") if row[2] == "shapes"]
    assert len(cases[0]) == 9
    worst = max(cases, key=lambda row: abs(percent(row[7])))
    middle = median(percent(row[4]) for row in cases)
    return f"{middle:.1%} is the middle of {len(cases)} medians", f"{worst[7]}: {worst[1]} of {worst[0]}"


def linked() -> tuple[str, str]:
    runs = [row for row in rows("kernels", "| run | prefixes |") if row[1] == "replayed" and "p2" in row[0]]
    each = "; ".join(f"{name.partition('_')[2]} {e2e}" for name, _, _, _, e2e in runs)
    return f"mean E2E {each}", f"TTFT {max((row[2] for row in runs), key=lambda cell: abs(percent(cell)))}"


def serving(kind: str) -> tuple[str, str]:
    [row] = [row for row in rows("step-time", "| kind | points |") if row[0] == kind]
    _, points, tpot, tpot90, _, ttft, ttft90, _ = row
    worst = [rows("step-time", f"worst by {what}, {kind}:")[0][-1] for what in ("TPOT", "TTFT")]
    return (
        f"{points} points: TPOT {tpot} in the median ({tpot90} at the 90th percentile), TTFT {ttft} ({ttft90})",
        f"TPOT {worst[0]}, TTFT {worst[1]}",
    )


def engines() -> tuple[str, str]:
    found = {(row[0], row[1]): row[2:] for row in rows("engine", "| figure | points |")}
    num, itl, itl90, _ = found["median ITL", "all"]
    [worst] = rows("engine", "| model | task | GPUs |")[:1]
    rate = found["tokens/s", "all"][1]
    return (
        f"{num} points: ITL {itl} in the median ({itl90} at the 90th percentile), tokens/s {rate}",
        f"{worst[-1]}: {worst[0]}",
    )


def newer() -> tuple[str, str]:
    each = {
        row[0].rpartition(", ")[2]: row[3]
        for row in rows("engine", "| run | stage |")
        if row[0].startswith("median")
    }
    runs = [row for row in rows("engine", "| run | stage |") if not row[0].startswith("median")]
    worst = max(runs, key=lambda row: abs(percent(row[4])))
    return (
        f"TPOT {each['TPOT']}, E2E {each['E2E']}, TTFT {each['TTFT']} in the median",
        f"E2E {worst[4]}: {worst[0]}, overloaded",
    )


def drafting() -> tuple[str, str]:
    found = rows("drafting")
    errors = [abs(percent(row[4])) for row in found]
    return (
        f"{len(found)} speed-ups, {median(errors):.1%} in the median",
        f"{max(errors):.1%}; EAGLE-3 not reproduced",
    )


def strategies() -> tuple[str, str]:
    held, of, worst = found("strategies", r"(\d+) of (\d+) within their tolerance; worst: (.+)\.")
    return f"{held} of {of} published figures within their tolerance", worst


def doubt() -> tuple[str, str]:
    [share, num] = found("ranges", r"families:\s(\d+%) of (\d+) lie inside")
    worst = min(rows("ranges", "| regime | class | family"), key=lambda row: percent(row[3]))
    return f"{share} of {num} points of models left out lie inside", f"{worst[3]}: {worst[2]}"


def power() -> tuple[str, str]:
    found = {(row[0], row[1].split()[0]): row[2:] for row in rows("energy", "| figure | points |")}
    watts, joules = found["watts, predicted step", "all"], found["J/token, all predicted", "all"]
    return (
        f"watts {watts[0]}, joules a token {joules[0]} in the median",
        f"{joules[1]} at the 90th percentile",
    )


def damaged() -> tuple[str, str]:
    *kinds, whole = [[cell.strip("*") for cell in row] for row in rows("damaged-files")]
    longest = max(kinds, key=lambda row: float(row[6]))
    return f"{whole[1]} files and {whole[4]} commands, {whole[5]} faults", f"{longest[6]} s: {longest[0]}"


def live() -> tuple[str, str]:
    [row] = [r for r in rows("calibration") if "replayed" in r[0]]
    [each] = [r for r in rows("calibration") if "per request" in r[0]]
    return f"mean TTFT, TPOT {row[2]} in two runs", f"{each[2]} a request, end to end"


CLAIMS = [
    ("KV groups, blocks, tokens, refusals", "vLLM 0.32's own planner", layout, "layout"),
    ("weights", "published totals, vLLM's model classes, start-up logs", weights, "weights"),
    ("blocks of a printed KV memory", "start-up logs of vLLM", blocks, "memory-blocks"),
    ("KV pool from flags alone", "logs of models that taught nothing", pool, "memory-pool"),
    ("pools of SGLang, TensorRT-LLM", "their start-up logs", other_engines, "memory-other-engines"),
    ("every scheduling decision", "vLLM 0.32's own scheduler", scheduler, "scheduler"),
    ("every load, store and eviction", "vLLM 0.32's own offloading to host memory", offloading, "offloading"),
    ("by the rules of other versions", "those versions' own schedulers", versions, "versions"),
    ("every decision under SGLang", "SGLang 0.5.23's own scheduler", sglang, "scheduler-sglang"),
    ("kernel and step times", "points the fit had not seen", kernels, "step-time"),
    ("a step's products, whole models", "kernel tables' shapes left out", sums, "kernels"),
    ("links between GPUs", "real runs of vLLM 0.19 with a stated link", linked, "kernels"),
    ("latency of a server, dense models", "published points", lambda: serving("dense"), "step-time"),
    ("latency of a server, mixtures", "published points", lambda: serving("MoE"), "step-time"),
    ("steps of vLLM 0.11 servers", "ML.ENERGY, a model family left out", engines, "engine"),
    ("steps of vLLM 0.15 servers", "BLIS's runs, nothing fitted", newer, "engine"),
    ("speculation", "a published run of vLLM with stated drafts", drafting, "drafting"),
    (
        "what strategies buy and take",
        "figures of papers and model cards, from their inputs",
        strategies,
        "strategies",
    ),
    ("90 % ranges of steps", "families left out", doubt, "ranges"),
    ("watts, joules a token", "ML.ENERGY, a model family left out", power, "energy"),
    ("damaged files end in one line", "seeded mutations", damaged, "damaged-files"),
    ("calibrate, then simulate", "a live vLLM on a CPU", live, "calibration"),
]


def table() -> str:
    lines = ["| claim | held against | figure | worst case | all rows |", "|---|---|---|---|---|"]
    for claim, against, figures, name in CLAIMS:
        figure, worst = figures()
        lines.append(f"| {claim} | {against} | {figure} | {worst} | [{name}](validation/{name}.md) |")
    return "\n".join(lines)


def test_the_table_is_what_the_files_say() -> None:
    section("table", table(), page="validation.md")


def test_every_file_has_a_line() -> None:
    """And the page stays short."""
    assert {path.stem for path in (DOCS / "validation").glob("*.md")} == {name for *_, name in CLAIMS}
    assert len(PAGE.read_text().splitlines()) < 120


def test_no_other_figure_is_typed() -> None:
    """Outside its table the page has no figures: versions and names only."""
    text = re.sub(r"<!-- table:begin -->.*<!-- table:end -->", "", PAGE.read_text(), flags=re.S)
    text = re.sub(r"\]\([^)]*\)|`[^`]*`|\b\d+\.\d+(\.\d+)?\b|[A-Za-z][\w-]*\d+\w*", "", text)
    assert not re.findall(r"\d", text)


def test_the_readme_says_the_same() -> None:
    """The README's figures are this page's."""
    by_kind = {row[0]: row for row in rows("step-time", "| kind | points |")}
    dense, moe = by_kind["dense"], by_kind["MoE"]
    readme = " ".join((ROOT / "README.md").read_text().split()).replace(" %", "%")
    assert f"{dense[1]} published points of dense models, {moe[1]} of mixtures" in readme
    assert f"TPOT {dense[2][:-1]} and {moe[2]}, TTFT {dense[5][:-1]} and {moe[5]} in the median" in readme
    points, itl, itl90, _ = {(r[0], r[1]): r[2:] for r in rows("engine", "| figure | points |")}[
        "median ITL", "all"
    ]
    assert f"{points} points of vLLM 0.11" in readme
    assert f"ITL {itl} off in the median ({itl90} at the 90th percentile)" in readme
    assert re.sub(r"E2E \S+ | in the median", "", newer()[0]) in readme
    assert f"{doubt()[0].partition(' ')[0]} inside their" in readme
