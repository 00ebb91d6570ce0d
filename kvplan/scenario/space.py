"""The `search:` part of a scenario: what `kvplan recommend` may change, and the load and prices it plans for."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from kvplan.ground.config import Config

Usd = Annotated[float, Field(ge=0, le=1e6)]
Share = Annotated[float, Field(ge=0, le=1e9)]
MOST_COPIES = 1_000_000_000
"""Looked at where nobody counts them: one copy is simulated at its share of the load, however many there are."""


class Search(Config):
    """Candidates are all combinations of `over`; each is one copy, and as many copies are bought as the load needs."""

    over: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Scenario key -> values to try; keys joined by + change together, e.g. gpu+engine.tensor_parallel_size."""
    rate: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Load to carry: requests (or problems) a second. Without rate, users and deadline_s: as much as fits."""
    users: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Load to carry: people who each ask again once they are answered (and have paused)."""
    deadline_s: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Load to carry: all requests (or problems) at once, done within so many seconds."""
    spare: int = Field(0, ge=0, le=100)
    """Copies beyond those that the load needs: 1 is the n+1 rule."""
    max_gpus: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """All copies together, spares included."""
    max_dollars_per_hour: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """All copies together, spares included."""
    max_copies: int = Field(4096, ge=1, le=MOST_COPIES)
    """More copies than this are not thought of."""
    usd_per_gpu_hour: dict[str, Usd] = Field(default_factory=dict)
    """GPU name -> price; the GPU table's where left out."""
    day: str | tuple[Share, ...] | None = None
    """Load over a day as shares of its peak (the `rate` or `users`): a bundled profile's name, or the numbers."""
    span: float = Field(10.0, ge=1, le=1000)
    """Each trial's arrivals go on for so many times the longest latency target, or the time a request stays where that
    is longer, so that a queue that grows is seen and the KV cache as full as it gets."""
    precision: float = Field(0.01, gt=0, le=0.5)
    """Relative width to which the highest load of the best rows, and the copies of all, are narrowed."""
    seeds: int = Field(5, ge=1, le=30)
    """At most so many different draws of the load for the best rows' interval; it stops earlier when it is narrow."""
    refine: int = Field(3, ge=0, le=1000)
    """How many of the best rows are narrowed to `precision` and get an interval."""
    target_width: float = Field(0.05, gt=0, le=1)
    """The interval's half width, relative, at which drawing stops."""
    ranges: bool = True
    """Simulate the best rows, and those that may tie with them, at both ends of what their steps may take."""
    robust: bool = False
    """Rank by what the slow end of the steps' range costs."""

    @model_validator(mode="after")
    def _one_load(self) -> Search:
        said = [name for name in ("rate", "users", "deadline_s") if getattr(self, name) is not None]
        if len(said) > 1:
            raise ValueError(f"{' and '.join(said)}: say one of them")
        if self.day is not None and self.rate is None and self.users is None:
            raise ValueError("day: its shares are of a rate or of users; say which")
        return self

    @property
    def is_asked(self) -> bool:
        """Whether a load is asked for; without one candidates carry as much as fits."""
        return self.kind == "batch" or self.rate is not None or self.users is not None

    @property
    def kind(self) -> str:
        """What is raised until a target is missed: rate, users, or batch (requests done by the deadline)."""
        return "users" if self.users is not None else "batch" if self.deadline_s is not None else "rate"
