"""How long prompts, thinking and answers are: distributions, and how the three move together.

Every distribution is a quantile function, so that correlated lengths are correlated uniforms pushed
through it. Knows no clock and no engine.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_serializer, model_validator

from kvplan.ground.config import Config
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import human_readable_int

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LONGEST = 100_000_000
"""Tokens; no sequence of any model is longer, and sums of a million of them still fit 64 bits."""

Tokens = Annotated[int, BeforeValidator(lambda v: human_readable_int(v) if isinstance(v, str) else v)]
"""A token count in a config; 32k = 32,000 and 32K = 32,768, as vLLM reads them."""
Count = Annotated[Tokens, Field(ge=0, le=LONGEST)]


class Constant(Config):
    """Always the same length."""

    kind: Literal["constant"] = "constant"
    value: Count
    """Tokens."""

    @model_serializer
    def _as_written(self) -> int:
        """A plain count, as people write it."""
        return self.value


class Uniform(Config):
    """Every length from `low` to `high`, both included, is as likely."""

    kind: Literal["uniform"]
    low: Count
    """Shortest, tokens."""
    high: Count
    """Longest, tokens."""

    @model_validator(mode="after")
    def _in_order(self) -> Uniform:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class Lognormal(Config):
    """The logarithm is normal: the usual shape of thinking traces, a long tail to the right."""

    kind: Literal["lognormal"]
    median: Annotated[Tokens, Field(gt=0, le=LONGEST)]
    """Tokens; exp of the mean logarithm."""
    sigma: float = Field(ge=0, le=5)
    """Standard deviation of the logarithm; mean = median * exp(sigma^2 / 2)."""
    low: Count = 1
    """Shorter draws are raised to this."""
    high: Count = LONGEST
    """Longer draws are cut to this."""


class Empirical(Config):
    """Drawn from listed values, e.g. measured ones."""

    kind: Literal["empirical"]
    values: tuple[Count, ...] = Field(min_length=1)
    """Tokens."""
    weights: tuple[Annotated[float, Field(ge=0, le=1e12)], ...] | None = None
    """How likely each value is; None = all the same."""

    @model_validator(mode="after")
    def _weights_fit(self) -> Empirical:
        w = self.weights
        if w is not None and (len(w) != len(self.values) or sum(w) <= 0):
            raise ValueError("weights need one non-negative number per value, not all zero")
        return self


Length = Annotated[
    Annotated[Constant | Uniform | Lognormal | Empirical, Field(discriminator="kind")],
    BeforeValidator(lambda v: {"kind": "constant", "value": v} if isinstance(v, int | str) else v),
]
"""A length in a config: a plain count, or one of the distributions by its `kind`."""


def _lognormal(spec: Lognormal, u: Floats) -> Floats:
    z = normal_quantile(u)
    drawn: Floats = np.rint(spec.median * np.exp(spec.sigma * z))
    return np.clip(drawn, spec.low, spec.high)


def _empirical(spec: Empirical, u: Floats) -> Floats:
    order = np.argsort(spec.values, kind="stable")
    weights = np.ones(len(order)) if spec.weights is None else np.asarray(spec.weights, float)[order]
    edges = np.cumsum(weights) / weights.sum()
    return np.asarray(spec.values, float)[order][
        np.minimum(np.searchsorted(edges, u, "right"), len(order) - 1)
    ]


_QUANTILE: dict[str, Callable[[Any, Floats], Floats]] = {
    "constant": lambda s, u: np.full(u.shape, float(s.value)),
    "uniform": lambda s, u: np.floor(s.low + u * (s.high - s.low + 1)),
    "lognormal": _lognormal,
    "empirical": _empirical,
}


def quantile(spec: Length, u: Floats) -> Ints:
    """Return the lengths [tokens] below which a share `u` in [0, 1) of all draws lies.

    >>> quantile(Lognormal(kind="lognormal", median=6000, sigma=0.8), np.array([0.5]))
    array([6000])
    """
    return _QUANTILE[spec.kind](spec, np.asarray(u, float)).astype(np.int64)


def normal_quantile(u: Floats) -> Floats:
    """Inverse of the standard normal distribution function, for `u` in [0, 1).

    Rational approximation by P. J. Acklam (relative error below 1.2e-9).
    """
    u = np.clip(u, 1e-16, 1 - 1e-16)
    q = u - 0.5
    r = q * q
    central = _ratio(r, _A, _B) * q
    tail = np.sqrt(-2 * np.log(np.minimum(u, 1 - u)))
    outer = _ratio(tail, _C, _D)
    return np.where(np.abs(q) <= 0.47575, central, np.where(q < 0, outer, -outer))


_A = (-3.969683028665376e1, 2.209460984245205e2, -2.759285104469687e2, 1.383577518672690e2,
      -3.066479806614716e1, 2.506628277459239)  # fmt: skip
_B = (-5.447609879822406e1, 1.615858368580409e2, -1.556989798598866e2, 6.680131188771972e1,
      -1.328068155288572e1, 1.0)  # fmt: skip
_C = (-7.784894002430293e-3, -3.223964580411365e-1, -2.400758277161838, -2.549732539343734,
      4.374664141464968, 2.938163982698783)  # fmt: skip
_D = (7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416, 1.0)


def _ratio(x: Floats, top: tuple[float, ...], bottom: tuple[float, ...]) -> Floats:
    ratio: Floats = np.polyval(top, x) / np.polyval(bottom, x)
    return ratio


class Correlation(Config):
    """How prompt, thinking and answer lengths of one request move together (rank correlations)."""

    prompt_thinking: float = Field(0.0, ge=-1, le=1)
    """Between prompt and thinking."""
    prompt_answer: float = Field(0.0, ge=-1, le=1)
    """Between prompt and answer."""
    thinking_answer: float = Field(0.0, ge=-1, le=1)
    """Between thinking and answer."""


def correlated_uniforms(correlation: Correlation, n: int, rng: np.random.Generator) -> Floats:
    """Return an (n, 3) array of uniforms whose rank correlations are those asked for: a Gaussian copula.

    A rank correlation s needs a normal correlation of 2 sin(pi s / 6) (Pearson 1907).
    """
    if correlation == Correlation():
        return rng.random((n, 3))
    rank = np.eye(3)
    rank[0, 1] = rank[1, 0] = correlation.prompt_thinking
    rank[0, 2] = rank[2, 0] = correlation.prompt_answer
    rank[1, 2] = rank[2, 1] = correlation.thinking_answer
    normal = 2 * np.sin(np.pi * rank / 6)
    values, vectors = np.linalg.eigh(normal)
    if values.min() < -1e-9:
        raise KvplanError(
            "correlation: no three lengths can be correlated like this; weaken one of the three"
        )
    root = vectors * np.sqrt(np.maximum(values, 0))
    return _normal_cdf(rng.standard_normal((n, 3)) @ root.T)


def _normal_cdf(z: Floats) -> Floats:
    cdf = np.vectorize(NormalDist().cdf, otypes=[float])
    return np.asarray(cdf(z), float)
