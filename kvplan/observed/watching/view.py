"""A server as watched: its load, its trend, its requests beside the scenario, its pool beside the plan, its limits.

pages --forecast--> when full;  requests --compare_classes--> outliers, --thinking_budget--> cap;  limits -> crossed
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import kvplan
from kvplan.memory.report import SCHEMA_VERSION
from kvplan.observed.metrics_page import NO_LENGTHS, Histogram, Snapshot
from kvplan.observed.reconciliation import Reconciliation
from kvplan.observed.watching.expected import ClassFinding, ThinkingBudget, thinking_budget
from kvplan.observed.watching.forecast import UNKNOWN, Forecast, forecast
from kvplan.observed.watching.usage_log import Usage


class Bounds(NamedTuple):
    """What may not be; None = no limit."""

    max_kv: float | None = None
    """Share of the pool, 0 to 1."""
    max_queue: float | None = None
    """Waiting requests."""
    max_preemptions: float | None = None
    """While watching."""
    full_within_s: float | None = None
    """The pool must last longer than that at this trend."""
    max_tokens: float | None = None
    """Output tokens of one request."""


class Tokens(NamedTuple):
    """Tokens of finished requests."""

    num_requests: float
    mean_prompt: float
    mean_output: float
    p90_output: float
    mean_thinking: float
    """NaN where usage does not tell."""
    source: str


@dataclass(frozen=True, slots=True)
class View:
    """What was seen."""

    pages: tuple[Snapshot, ...]
    requests: tuple[Usage, ...]
    classes: tuple[ClassFinding, ...]
    """Of the scenario, beside the requests; empty without one."""
    found: Reconciliation | None
    """The plan of what the server says of itself; None where model or card are not known."""
    limits: Bounds
    more_to_come: bool = False
    """Whether the one page that there is begins a watch: nothing was preempted while watching then."""

    @property
    def last(self) -> Snapshot | None:
        """The newest page."""
        return self.pages[-1] if self.pages else None

    @property
    def forecast(self) -> Forecast:
        """When the pool is full."""
        return forecast(self.pages, self.requests) if self.pages else UNKNOWN

    @property
    def span_s(self) -> float:
        """Seconds from the first page to the last; NaN where pages have no times."""
        return self.pages[-1].time_s - self.pages[0].time_s if self.pages else math.nan

    @property
    def preemptions(self) -> float:
        """While watching; of one page, since the server started."""
        if not self.pages:
            return 0.0
        alone = len(self.pages) == 1 and not self.more_to_come
        first = 0.0 if alone else self.pages[0].preemptions
        return max(0.0, self.pages[-1].preemptions - first)

    @property
    def pool_tokens(self) -> float:
        """As the server says, else as planned; NaN where neither is known."""
        if self.last is not None and self.last.pool_tokens > 0:
            return self.last.pool_tokens
        return self.found.plan.cache_tokens.value if self.found else math.nan

    @property
    def tokens(self) -> Tokens | None:
        """Of the log's requests, else of the server's histograms: while watching, or since it started."""
        if self.requests:
            return _of_requests(self.requests)
        if self.last is None:
            return None
        first = self.pages[0]
        prompts, answers = self.last.prompts.since(first.prompts), self.last.answers.since(first.answers)
        since = "while watching"
        if not answers.requests:
            prompts, answers, since = self.last.prompts, self.last.answers, "since it started"
        return (
            _of_histograms(prompts, answers, since)
            if answers is not NO_LENGTHS and answers.requests
            else None
        )

    @property
    def budget(self) -> ThinkingBudget | None:
        """The thinking budget under which those that are there now stay in the pool."""
        at_once = self.last.running + self.last.waiting if self.last else math.nan
        return thinking_budget(self.requests, at_once, self.pool_tokens) if at_once > 0 else None

    @property
    def crossed(self) -> tuple[str, ...]:
        """Bounds that do not hold, in words."""
        last, limits, said = self.last, self.limits, []
        if last is not None:
            peak = max(page.usage for page in self.pages)
            if limits.max_kv is not None and peak > limits.max_kv:
                said.append(f"KV use {peak:.1%} is above --max-kv {limits.max_kv:g}")
            queue = max(page.waiting for page in self.pages)
            if limits.max_queue is not None and queue > limits.max_queue:
                said.append(f"{queue:,.0f} requests wait, --max-queue is {limits.max_queue:g}")
            if limits.max_preemptions is not None and self.preemptions > limits.max_preemptions:
                said.append(
                    f"{self.preemptions:,.0f} preemptions, --max-preemptions is {limits.max_preemptions:g}"
                )
            when = self.forecast
            if limits.full_within_s is not None and when.seconds <= limits.full_within_s:
                said.append(f"the pool is full {when}, --full-within is {limits.full_within_s:g} s")
        longest = max((request.output_tokens for request in self.requests), default=0.0)
        if limits.max_tokens is not None and longest > limits.max_tokens:
            said.append(f"a request of {longest:,.0f} output tokens, --max-tokens is {limits.max_tokens:g}")
        return tuple(said)

    def line(self) -> str:
        """One line of the newest page, for a terminal that scrolls."""
        last = self.last
        assert last is not None
        return (
            f"KV {last.usage:6.1%}  running {last.running:5,.0f}  waiting {last.waiting:5,.0f}  "
            f"preempted {self.preemptions:4,.0f}  full {self.forecast}"
        )

    def to_dict(self) -> dict[str, object]:
        """The document of `kvplan watch --json`; null = not known."""
        last, when, tokens = self.last, self.forecast, self.tokens
        plan = self.found.plan if self.found else None
        return {
            "schema_version": SCHEMA_VERSION,
            "kvplan_version": kvplan.__version__,
            "pages": len(self.pages),
            "span_s": _known(self.span_s),
            "model": last.model if last else None,
            "kv_usage": last.usage if last else None,
            "kv_usage_peak": max((page.usage for page in self.pages), default=None),
            "running": last.running if last else None,
            "waiting": last.waiting if last else None,
            "preemptions": self.preemptions,
            "pool_tokens": _known(self.pool_tokens),
            "planned_pool_tokens": plan.cache_tokens.value if plan else None,
            "full": {name: _known(value) for name, value in when._asdict().items()} | {"words": str(when)},
            "tokens": {k: _known(v) for k, v in tokens._asdict().items()} if tokens else None,
            "classes": [one._asdict() | {"is_off": one.is_off} for one in _finite(self.classes)],
            "thinking_budget": self.budget.to_dict() if self.budget else None,
            "crossed": list(self.crossed),
        }

    def __str__(self) -> str:
        """Facts, trend, requests, then what is crossed."""
        return "\n".join([*self._server(), *self._requests(), *(f"Limit: {one}." for one in self.crossed)])

    def _server(self) -> list[str]:
        last = self.last
        if last is None:
            return []
        span = f", {self.span_s:,.0f} s" if self.span_s > 0 else ""
        pages = f"{len(self.pages):,} page{'s' if len(self.pages) > 1 else ''}"
        peak = max(page.usage for page in self.pages)
        rows = [
            (f"{last.model or 'a server'}", f"{pages}{span}"),
            ("KV use", f"{last.usage:.1%}, at most {peak:.1%}"),
            ("pool", self._pool()),
            ("running, waiting", f"{last.running:,.0f}, {last.waiting:,.0f}"),
            (
                "preemptions",
                f"{self.preemptions:,.0f}" + ("" if len(self.pages) > 1 else " since it started"),
            ),
            ("full", f"{self.forecast}"),
        ]
        return [f"{name:<19} {text}" for name, text in rows]

    def _pool(self) -> str:
        said = f"{self.pool_tokens:,.0f} tokens" if self.pool_tokens > 0 else "not told"
        if self.found is None:
            return said
        plan = self.found.plan
        low, high = (f"{value:,.0f}" for value in plan.cache_tokens[1:])
        return f"{said}; planned {plan.cache_tokens.value:,.0f} ({low}-{high})"

    def _requests(self) -> list[str]:
        tokens, lines = self.tokens, []
        if tokens is not None:
            thinking = (
                "" if math.isnan(tokens.mean_thinking) else f", of it thinking {tokens.mean_thinking:,.0f}"
            )
            lines.append(
                f"{'tokens a request':<20}prompt {tokens.mean_prompt:,.0f}, output {tokens.mean_output:,.0f}"
                f"{thinking}, p90 {tokens.p90_output:,.0f} ({tokens.num_requests:,.0f} requests, {tokens.source})"
            )
        lines += [f"{'off' if one.is_off else 'class':<20}{one}" for one in self.classes if one.num_requests]
        if (budget := self.budget) is not None:
            lines.append(
                f"{'thinking budget':<20}{budget.tokens:,} tokens keep the {self._at_once():,.0f} requests in the "
                f"pool; {budget.share_cut:.0%} think longer"
            )
        return lines

    def _at_once(self) -> float:
        return self.last.running + self.last.waiting if self.last else 0.0


def _of_requests(requests: Sequence[Usage]) -> Tokens:
    output = sorted(request.output_tokens for request in requests)
    told = [request.thinking_tokens for request in requests if not math.isnan(request.thinking_tokens)]
    return Tokens(
        num_requests=len(requests),
        mean_prompt=math.fsum(request.prompt_tokens for request in requests) / len(requests),
        mean_output=math.fsum(output) / len(output),
        p90_output=output[min(len(output) - 1, int(0.9 * len(output)))],
        mean_thinking=math.fsum(told) / len(told) if told else math.nan,
        source="the request log",
    )


def _of_histograms(prompts: Histogram, answers: Histogram, since: str) -> Tokens:
    return Tokens(answers.requests, prompts.mean, answers.mean, answers.quantile(0.9), math.nan, since)


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite(classes: Sequence[ClassFinding]) -> list[ClassFinding]:
    """Classes that have requests."""
    return [one for one in classes if one.num_requests]
