"""Measuring one card (or this CPU) into one file, in one call: the entry. Loads torch only when it measures.

    python -m kvplan.calibrate.card FILE [cuda|cpu] [default|quick|cpu] [--force] [--budget-s SECONDS]
    python -m kvplan.calibrate.card --folder FOLDER
    python -m kvplan.calibrate.card --plan SECONDS

The first is that call, for a machine without network. The second copies what it needs into a folder of its own (torch,
triton and transformers are all that has to be there): run `python run.py FILE` in it, bring FILE back and `kvplan fit`
it. The third lists what would be measured in so many seconds on an H100, by bytes and FLOPs.
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory

from kvplan.calibrate.session import MeasurementSession, Report, no_report
from kvplan.ground.errors import KvplanError
from kvplan.ground.files import write_whole

USAGE = "usage: python -m kvplan.calibrate.card FILE [cuda|cpu] [default|quick|cpu] [--force] [--budget-s SECONDS]"
RUN = """import sys

from kvplan.calibrate.card import main

sys.exit(main(sys.argv[1:]))
"""


def measure_card(
    out: Path,
    device_name: str = "cuda",
    grid_name: str = "",
    *,
    rounds: int = 0,
    force: bool = False,
    budget_s: float = 0.0,
    report: Report = no_report,
) -> MeasurementSession:
    """Measure this machine's card (or its CPU, with tiny shapes) into `out`, skipping what is there.

    `rounds` repeats every point on different minutes; 0 = as the grid says. `budget_s` ends it after so many seconds,
    each stage with its share; 0 = all of the grid. Another call goes on where this one ended.

    Raises:
        KvplanError: no torch, no usable card, another process computing on it (unless `force`), a file of another
            machine.
    """
    _need_torch()
    from kvplan.calibrate.measure.stages import measure_stages  # torch is large, and not needed to say usage

    return measure_stages(
        out, device_name, grid_name, rounds=rounds, force=force, budget_s=budget_s or inf, report=report
    )


def main(words: list[str]) -> int:
    """Measure as the command line says; an error is one line and exit code 2, as of `kvplan`."""
    out = ""
    try:
        if words[:1] == ["--folder"] and len(words) == 2:
            write_folder(Path(words[1]))
        elif words[:1] == ["--plan"] and len(words) == 2:
            print("\n".join(plan_lines(_seconds(words[1]))))
        else:
            force, budget_s, (out, *rest) = _options(words)
            measure_card(Path(out), *rest, force=force, budget_s=budget_s, report=_print_progress)
    except (KvplanError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; what was measured is in {out}, run it again to go on", file=sys.stderr)
        return 130
    return 0


def _options(words: list[str]) -> tuple[bool, float, list[str]]:
    """Whether to measure beside others, the budget in seconds (0: none), and the words that are no option."""
    rest, budget_s = list(words), 0.0
    force = "--force" in rest
    if force:
        rest.remove("--force")
    if "--budget-s" in rest[:-1]:
        at = rest.index("--budget-s")
        budget_s = _seconds(rest[at + 1])
        del rest[at : at + 2]
    if not 1 <= len(rest) <= 3 or any(word.startswith("--") for word in rest):
        raise KvplanError(USAGE)
    return force, budget_s, rest


def _seconds(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise KvplanError(f"{word!r} is no number of seconds; {USAGE}") from None


def write_folder(folder: Path) -> None:
    """Copy the files that measuring needs, and `run.py`, into a new folder: no installation, no network."""
    if folder.exists() and any(folder.iterdir()):
        raise KvplanError(f"{folder} is not empty; name a new folder")
    package = Path(__file__).parents[1]
    needed = ["__init__.py", "ground/__init__.py", "calibrate/__init__.py"]
    needed += [f"ground/{name}.py" for name in ("errors", "files", "pictures")]
    needed += [f"calibrate/{name}.py" for name in ("card", "session", "measurements")]
    needed += [path.relative_to(package).as_posix() for path in package.glob("calibrate/measure/*.py")]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
        for name in needed:
            target = Path(beside) / "folder" / "kvplan" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(package / name, target)
        write_whole(Path(beside) / "folder" / "run.py", RUN)
        os.replace(Path(beside) / "folder", folder)


def plan_lines(budget_s: float) -> list[str]:
    """What the default grid gets done in so many seconds on an H100, as a table; torch is needed to list the points."""
    _need_torch()
    from kvplan.calibrate.measure.stages import planned_on_an_h100

    lines = [f"{'stage':<20}{'points':>8}{'of':>8}{'seconds':>9}{'each':>8}"]
    for name, points, of, seconds in planned_on_an_h100(budget_s):
        each = f"{seconds / points:>8.2f}" if points else ""
        lines.append(f"{name:<20}{points:>8,}{of:>8,}{seconds:>9.1f}{each}")
    return lines


def _need_torch() -> None:
    if find_spec("torch") is None:
        raise KvplanError("calibrating a card needs torch: pip install 'kvplan[gpu]'")


def _print_progress(what: str, done: int, total: int) -> None:
    print(f"{done}/{total} {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
