"""What one class of requests looks like, and the workload that mixes them: the `workload:` part of a scenario.

Knows no clock and no engine; `load.py` draws the requests.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kvplan.ground.config import Config
from kvplan.workload.arrivals import Arrivals, Poisson, TraceReplay
from kvplan.workload.lengths import LONGEST, Constant, Correlation, Count, Length, Tokens
from kvplan.workload.traces import TraceSpec

MAX_REQUESTS = 20_000_000
"""More in one run is refused: it would not fit in memory as flat records."""

Milliseconds = Annotated[float | None, Field(gt=0, le=1e9)]


class Slo(Config):
    """Latency targets of one request; None = no target. A request is good when it meets all of them."""

    ttft_ms: Milliseconds = None
    """First token of any kind, as vLLM counts."""
    ttfvt_ms: Milliseconds = None
    """First visible token: the first one after the thinking."""
    tpot_ms: Milliseconds = None
    """Mean time per output token after the first."""
    e2el_ms: Milliseconds = None
    """Arrival to last token."""
    share: float = Field(0.99, gt=0, le=1)
    """How many of the class's requests must meet all targets; fewer is a missed SLO."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked."""
        return self.ttft_ms is self.ttfvt_ms is self.tpot_ms is self.e2el_ms is None


class Turns(Config):
    """A conversation: every turn's prompt is all that was said before, then a new message."""

    turns: Length
    """Turns per session."""
    message: Length = Constant(value=100)
    """Tokens of each new message or tool result after the first prompt."""
    pause_s: float = Field(0.0, ge=0, le=1e7)
    """Mean pause between an answer and the next turn: a user who reads, a tool that runs."""
    pause: Literal["exponential", "constant"] = "exponential"
    """How pauses vary."""
    keep_thinking: bool = False
    """Later prompts contain the thinking; chat templates usually drop it."""


class RequestClass(Config):
    """Requests of one kind."""

    share: float = Field(1.0, gt=0, le=1e6)
    """Weight of this class in the mix."""
    prompt: Length = Constant(value=512)
    """Prompt tokens."""
    thinking: Length = Constant(value=0)
    """Hidden tokens before the answer."""
    answer: Length = Constant(value=256)
    """Visible tokens."""
    correlation: Correlation = Correlation()
    """How the three lengths move together."""
    shared_prefix_tokens: Count = 0
    """The first so many prompt tokens are shared (a system prompt, a few-shot preamble)."""
    shared_prefix_groups: int = Field(1, ge=1, le=1_000_000)
    """Different shared prefixes; each request uses one, drawn at random."""
    max_tokens: Annotated[Tokens, Field(ge=1, le=LONGEST)] | None = None
    """What the client sends; None = up to max_model_len, as vLLM."""
    stop: Literal["eos", "length", "never"] = "eos"
    """eos: ends by itself at the drawn length, which the scheduler does not know. length: max_tokens is the
    drawn length (a benchmark that ignores EOS). never: runs to max_tokens."""
    priority: int = Field(0, ge=-1_000_000, le=1_000_000)
    """Smaller is sooner, with scheduling_policy: priority."""
    timeout_s: Annotated[float, Field(gt=0, le=1e7)] | None = None
    """The client gives up this long after it asked; the engine then aborts the request."""
    abort_share: float = Field(0.0, ge=0, le=1)
    """Share of requests whose client leaves early."""
    abort_after_s: float = Field(10.0, gt=0, le=1e7)
    """Mean time until such a client leaves, exponential."""
    session: Turns | None = None
    """Several turns instead of one."""
    model: str = ""
    """Which of the scenario's `models` serves it; empty = the main one."""
    slo: Slo | None = None
    """Targets of this class; None = the scenario's."""


class Workload(RequestClass):
    """What arrives. One class is described in place; several in `classes`."""

    num_requests: int = Field(200, ge=1, le=MAX_REQUESTS)
    """Arrivals; a session of several turns counts once. A trace may have fewer."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Same seed, same requests, same bytes out."""
    arrivals: Arrivals = Poisson(kind="poisson", rate=1.0)
    """When they arrive; left out beside a trace: at the trace's own times, as `{kind: replay}`."""
    classes: dict[str, RequestClass] = Field(default_factory=dict, max_length=1000)
    """Several classes by name, mixed by `share`."""
    trace: TraceSpec | None = None
    """Real requests; then prompt, thinking and answer lengths come from it."""

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Workload:
        own = self.model_fields_set & set(RequestClass.model_fields)
        if self.classes and own:
            raise ValueError(f"{', '.join(sorted(own))}: say it in each of the classes, not beside them")
        lengths = own & {"prompt", "thinking", "answer", "session", "correlation"}
        if self.trace and (self.classes or lengths):
            raise ValueError(
                f"a trace brings its own lengths; drop {', '.join(sorted(lengths)) or 'classes'}"
            )
        if self.arrivals.kind == "replay" and not self.trace:
            raise ValueError("arrivals of kind replay need a trace")
        if self.trace and "arrivals" not in self.model_fields_set:
            self.__dict__["arrivals"] = TraceReplay(
                kind="replay"
            )  # not said: searches choose a process of theirs
        return self

    @property
    def by_name(self) -> dict[str, RequestClass]:
        """The classes; the only one is called `default`."""
        return self.classes or {"default": self}
