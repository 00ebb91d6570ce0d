"""What the range of its steps does to a candidate: the load of one copy, copies, dollars; which ranks that could turn.

Loads at the ends come from `candidates.AtEnds`, through the queue; where nobody simulated them they follow the steps'
range in proportion. The luck of the draw joins in quadrature where other draws were looked at.
"""

from __future__ import annotations

from math import ceil, inf
from typing import NamedTuple

from kvplan.scenario.space import Search
from kvplan.search.point_row import Row, accuracy_text
from kvplan.simulation.uncertainty import span
from kvplan.workload.problems import Problems


class Costs(NamedTuple):
    """Dollars, under the load that is planned for; None where no such figure is."""

    usd_per_hour: float
    usd_per_million_visible_tokens: float | None
    usd_per_correct: float | None


class CostEnd(NamedTuple):
    """One end of what a candidate may be: its slow one carries least and costs most."""

    highest: float
    """Load that one copy sustains; 0: none is sustained."""
    copies: float
    """For the asked load, spares left out; inf where none is sustained."""
    costs: Costs


def load_range(row: Row) -> tuple[float, float]:
    """(slow end, quick end) of the load that one copy sustains."""
    highest = row["highest"]
    if row["highest_low"] is None:
        slow, quick = highest / row["step_high"], highest / row["step_low"]
    else:
        slow, quick = row["highest_low"], row["highest_high"]
    luck = (1.0, 1.0)
    if row["low"] and row["high"]:
        luck = row["low"] / highest, row["high"] / highest
    found = span([highest, slow, quick], luck)
    assert found is not None
    return found


def find_ends(row: Row, load: float, search: Search) -> tuple[CostEnd, CostEnd]:
    """(slow, quick) of a measured row; `load` is the asked one, 0 = as much as fits."""
    slow, quick = load_range(row)
    most = max(row["copies"], _copies(load, slow))
    least = min(row["copies"], _copies(load, quick))
    return _end(row, slow, most, load, search), _end(row, quick, least, load, search)


def _copies(load: float, highest: float) -> float:
    if not load:
        return 1
    return ceil(load / highest - 1e-9) if highest else inf


def _end(row: Row, highest: float, copies: float, load: float, search: Search) -> CostEnd:
    bought = copies + (search.spare if load else 0)
    return CostEnd(
        highest, copies, find_costs(row, bought * row["usd_per_hour_per_copy"], load or highest, search)
    )


def find_costs(row: Row, usd_per_hour: float, load: float, search: Search) -> Costs:
    """Dollars an hour, per million visible tokens and per correct answer, at a load of all copies together."""
    done = row["completed"]
    visible = row["visible_throughput"] * row["duration_s"] / done if done else 0.0
    per_s = load if search.kind == "rate" else done / row["duration_s"] * load / row["highest"]
    if not per_s:
        return Costs(usd_per_hour, None, None)
    each = usd_per_hour / 3600 / per_s
    correct = each / row["accuracy"] if row["accuracy"] else None
    return Costs(usd_per_hour, each / visible * 1e6 if visible else None, correct)


def unsure(
    row: Row, load: float, slow: CostEnd, quick: CostEnd, search: Search, problems: Problems | None
) -> tuple[str, ...]:
    """What the range could turn, or the interval of an accuracy, a sentence each."""
    said = []
    if (
        problems is not None
        and row["accuracy_low"] is not None
        and row["accuracy_low"] < problems.min_accuracy
    ):
        said.append(f"accuracy {accuracy_text(row)}: it may be below the {problems.min_accuracy:.1%} asked")
    where = "at the slow end of the step's range"
    if slow.highest == 0:
        said.append(f"no load is sustained {where}")
    elif load and slow.copies != quick.copies:
        said.append(f"needs {quick.copies:.0f} to {slow.copies:.0f} copies within the error of step times")
    gpus = row["num_gpus_per_copy"]
    if search.max_gpus and 0 < slow.copies < inf and (slow.copies + search.spare) * gpus > search.max_gpus:
        said.append(f"needs more than the {search.max_gpus} allowed GPUs {where}")
    for name, end in (("slow", "limit_low"), ("quick", "limit_high")):
        if row[end] and row[end] != row["limit"]:
            said.append(f"limited by {row['limit']}, at the {name} end of the step's range by {row[end]}")
    return tuple(said)
