"""Verifiers as parts of the system: what a score reads, computes, remembers and costs, and how often it errs.

Knows tokens; how long a co-located pass takes is the engine's step time, how long a remote one takes is stated
here. No clock.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, NamedTuple, Self

import yaml
from pydantic import Field, model_validator

from kvplan.formulas.quality import rate_of_pairs
from kvplan.ground.config import Config
from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.ground.files import catalog_dir
from kvplan.workload.outcomes import ScoreModel


class ScoreWork(NamedTuple):
    """One score's work."""

    read_tokens: int
    """Computed as prompt."""
    decode_tokens: int
    """Generated, one after the other (a generative verifier's verdict)."""
    kv_tokens: int
    """Held in the verifier's own KV cache while it scores; from step to step when it is incremental."""


NOTHING = ScoreWork(0, 0, 0)


class MeasuredRates(Config):
    """How well a reward model tells right samples from wrong ones of the same problem, as somebody measured it."""

    pairwise_accuracy: float = Field(ge=0, le=1)
    """Share of such pairs in which the right one scores higher."""
    model: str
    benchmark: str
    date: str
    source: str

    @property
    def rate(self) -> float:
        """Its true positive and true negative rate, taken as equal."""
        return rate_of_pairs(self.pairwise_accuracy)


@lru_cache(maxsize=1)
def measured_rates() -> dict[str, MeasuredRates]:
    """The bundled ones by name."""
    rows: dict[str, Any] = yaml.safe_load((catalog_dir() / "verifiers.yaml").read_text())
    return {name: MeasuredRates(**row) for name, row in rows.items()}


class Verifier(Config):
    """Who scores, where it runs, what it remembers, and how often it is wrong."""

    kind: Literal["rule", "orm", "prm", "generative", "vote"] = "rule"
    """rule = a checker (tests, a parser), free; orm = a reward model on whole answers; prm = on every step;
    generative = a critic that writes its verdict; vote = the samples themselves, free."""
    placement: Literal["colocated", "remote"] = "colocated"
    """colocated = weights and KV off the same GPU's budget, and its passes take the GPU's time."""
    kv: Literal["incremental", "reread"] = "reread"
    """incremental = keeps the KV of what it has read and reads only what is new; reread = from the start."""
    kv_tokens: int = Field(65_536, ge=1, le=10**9)
    """Incremental: tokens it can hold; what it had to let go it reads again. Co-located, they come off the budget."""
    model: str = ""
    """A bundled model or a config.json, for weights, KV and step time; co-located model verifiers need one."""
    instruction_tokens: int = Field(0, ge=0, le=1_000_000)
    """Its own prompt, read with each score that is not incremental."""
    decode_tokens: int = Field(0, ge=0, le=1_000_000)
    """Length of a generative verdict."""
    rates: str = ""
    """A bundled measurement (`kvplan list verifiers`) that stands for both rates, instead of stating them."""
    true_positive_rate: float = Field(1.0, ge=0, le=1)
    """Share of right work that it scores above 0.5."""
    true_negative_rate: float = Field(1.0, ge=0, le=1)
    """Share of wrong whole answers that it scores below 0.5; of unfinished ones fewer: the mistake has yet to show."""
    correlation: float = Field(0.0, ge=0, le=1)
    """Share of its error that hangs on the text, what branches of a prefix share; 0 = each score errs anew."""
    latency_s: float = Field(0.0, ge=0, le=3600)
    """Remote: fixed time per score."""
    tokens_per_s: float = Field(50_000.0, gt=0, le=1e12)
    """Remote: tokens it reads a second, per score."""
    decode_tokens_per_s: float = Field(50.0, gt=0, le=1e9)
    """Remote: tokens of the verdict a second, per score."""
    concurrency: int = Field(8, ge=1, le=1_000_000)
    """Remote: scores at a time; others queue."""
    source: str = "assumed"
    """Where the rates come from."""

    @model_validator(mode="before")
    @classmethod
    def _fill_rates(cls, data: Any) -> Any:
        name = data.get("rates") if isinstance(data, dict) else None
        if not isinstance(name, str) or not name:
            return data
        if name not in measured_rates():
            known = did_you_mean(name, measured_rates()) or f"; there are {', '.join(measured_rates())}"
            raise KvplanError(f"no measured verifier rates {name!r}{known}")
        found = measured_rates()[name]
        said = f"{found.source}: {found.pairwise_accuracy:.1%} of pairs on {found.benchmark}; equal rates assumed"
        both = {"true_positive_rate": found.rate, "true_negative_rate": found.rate, "source": said}
        stated = [key for key in both if key in data and data[key] != both[key]]
        if stated:
            raise KvplanError(
                f"verifier: rates {name} and {', '.join(stated)} contradict each other; state one"
            )
        return data | both

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.kind == "generative" and not self.decode_tokens:
            raise KvplanError("a generative verifier writes its verdict: give decode_tokens")
        if self.needs_model and self.placement == "colocated" and not self.model:
            raise KvplanError(
                f"a co-located {self.kind} verifier needs `model` (its weights come off the budget)"
            )
        if not self.needs_model and self.model:
            raise KvplanError(f"a {self.kind} verifier runs no model; drop model: {self.model}")
        return self

    @property
    def needs_model(self) -> bool:
        """Whether scores are computed by a model at all."""
        return self.kind not in ("rule", "vote")

    @property
    def score_model(self) -> ScoreModel:
        """The error rates, as the draws want them."""
        return ScoreModel(self.true_positive_rate, self.true_negative_rate, self.correlation)

    def work(self, content_tokens: int, new_tokens: int) -> ScoreWork:
        """What one score of a branch takes: `content_tokens` in all, the last `new_tokens` since its parent's.

        >>> Verifier(kind="prm", model="x", kv="incremental").work(5000, 512)
        ScoreWork(read_tokens=512, decode_tokens=0, kv_tokens=5000)
        >>> Verifier(kind="prm", model="x").work(5000, 512)
        ScoreWork(read_tokens=5000, decode_tokens=0, kv_tokens=5000)
        """
        if not self.needs_model:
            return NOTHING
        read = new_tokens if self.kv == "incremental" else content_tokens + self.instruction_tokens
        kept = content_tokens + self.instruction_tokens + self.decode_tokens
        return ScoreWork(read, self.decode_tokens, kept)

    def remote_s(self, work: ScoreWork) -> float:
        """Seconds that a remote verifier needs for one score, its queue apart."""
        read = work.read_tokens / self.tokens_per_s
        return self.latency_s + (
            read + work.decode_tokens / self.decode_tokens_per_s if self.needs_model else 0.0
        )
