"""How far step times may be off: what errors on models that were left out say, by engine and class of model.

`catalog/step_errors.yaml` holds measured over predicted step time, 5 to 95 % of the points of its regime, every family
of models weighing alike and none predicted from its own points. What prompts add to a step is told apart, by first
tokens: it errs more. `benchmarks/validate_ranges.py` makes it and says how often the ranges held. A card or an engine
that nobody measured has a wide range, and the text says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Literal, NamedTuple

import yaml
from pydantic import Field

from kvplan.engines.flags import EngineVersion
from kvplan.ground.config import Config
from kvplan.ground.files import catalog_dir
from kvplan.models.spec import ModelSpec
from kvplan.profiles.engine_terms import model_class
from kvplan.profiles.timing_profile import TimingProfile

Evidence = Literal["tables", "steps"]
"""What a profile rests on: kernel tables, or whole steps of this card and engine."""


class StepErrors(Config):
    """One regime: measured over predicted step time on points that nothing was fitted to."""

    engine: str
    since: tuple[int, int] = (0, 0)
    until: tuple[int, int] | None = None
    evidence: Evidence
    kind: Literal["dense", "mixture"] | None = None
    """None: every class of model."""
    low: float = Field(gt=0)
    """5 % of the points took less than `low` times the prediction."""
    high: float = Field(gt=0)
    prompt_low: float = Field(gt=0)
    """5 % of the first tokens came within `prompt_low` times the prediction."""
    prompt_high: float = Field(gt=0)
    median: float = Field(ge=0)
    """Median of |predicted / measured - 1| of decode steps."""
    num_points: int = Field(ge=0)
    num_families: int = Field(ge=0)
    source: str


class Doubt(NamedTuple):
    """A 90 % range of step times: they may take `low` to `high` times what is predicted, and what prompts add to them
    `prompt_low` to `prompt_high` times."""

    low: float
    high: float
    prompt_low: float
    prompt_high: float
    why: str

    def __str__(self) -> str:
        """E.g. -7 to +12 %, prompts -10 to +50 %: why."""
        prompts = f"prompts {self.prompt_low - 1:+.0%} to {self.prompt_high - 1:+.0%}"
        return f"{self.low - 1:+.0%} to {self.high - 1:+.0%}, {prompts}: {self.why}"

    def wider(self, parts: Iterable[Unmeasured]) -> Doubt:
        """The range with what nobody measured of these flags, which are said in it."""
        found = self
        for part in parts:
            found = Doubt(
                found.low * part.low,
                found.high * part.high,
                found.prompt_low * part.low,
                found.prompt_high * part.high,
                f"{found.why}; {part.what}",
            )
        return found


class Unmeasured(NamedTuple):
    """What flags change of a step's time that no measurement tells: `low` to `high` times what is predicted."""

    what: str
    low: float
    high: float


UNMEASURED = Doubt(0.5, 2.0, 0.4, 3.0, "nothing was measured on this card (assumed)")
UNSEEN_ENGINE = Doubt(0.7, 1.5, 0.6, 2.5, "no whole steps of this engine were seen (assumed)")


@cache
def all_errors() -> tuple[StepErrors, ...]:
    """Every regime of the catalog, in its order."""
    return tuple(
        StepErrors(**row) for row in yaml.safe_load((catalog_dir() / "step_errors.yaml").read_text())
    )


def find_doubt(timing: TimingProfile, engine: EngineVersion, model: ModelSpec, is_own_card: bool) -> Doubt:
    """The regime's range; a wide one where nothing like it was measured."""
    if not is_own_card:
        return UNMEASURED
    evidence: Evidence = "tables" if "step.layer_s" in timing.assumed else "steps"
    kind = "dense" if model_class(model) in ("dense", "states") else "mixture"
    for row in all_errors():
        fits = engine.is_between(row.engine, row.since, row.until)
        if fits and row.evidence == evidence and row.kind in (None, kind):
            return Doubt(
                row.low,
                row.high,
                row.prompt_low,
                row.prompt_high,
                f"{row.num_points} points of {row.num_families} families left out, {row.source}",
            )
    return UNSEEN_ENGINE
