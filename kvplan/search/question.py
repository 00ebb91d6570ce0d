"""One question in the words that people ask it in, and the scenario that it stands for. Computes nothing.

QwQ-32B, 32k thinking, two H100, 500 users, a first token within 2 s: what should run?
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import exp
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, field_validator, model_validator

from kvplan.ground.config import Config
from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.ground.gpu import get_gpu, split_machines
from kvplan.ground.units import cdiv
from kvplan.models.load import load_model
from kvplan.models.spec import ModelSpec
from kvplan.scenario.schema import Scenario, parse_scenario
from kvplan.scenario.space import MOST_COPIES
from kvplan.workload.lengths import Tokens

SPREAD = 1.0
"""Sigma of ln(tokens). In production, DeepSeek-R1 thinks with 1.03 and answers with 1.45; prompts spread more, 1.84
(ServeGen, Xiang and others, 2025: 40,000 requests of its reasoning mix)."""
LONGEST = exp(2.326 * SPREAD)
"""The longest of a hundred over the median, ten times: stated thinking is what one trace in a hundred is cut to."""
CARDS = ("h100", "h200", "b200", "a100-80gb")
"""Looked at where nobody names a card: data-centre cards that a bundled profile of vLLM times."""
LARGEST_TP = 8
"""Cards of one host."""
TARGETS = {
    "ttft": "ttft_ms",
    "visible": "ttfvt_ms",
    "ttfvt": "ttfvt_ms",
    "tpot": "tpot_ms",
    "itl": "tpot_ms",
    "e2e": "e2el_ms",
    "e2el": "e2el_ms",
    "latency": "e2el_ms",
}
"""Words for a target -> key of `slo`."""
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "min": 6e4}
"""Milliseconds."""
_TARGET = re.compile(r"\s*([a-zA-Z][a-zA-Z0-9]*)\s*(?:<=?|=|:)\s*([0-9.]+)\s*(us|ms|s|min)?\s*$")

Typical = Annotated[Tokens, Field(ge=1, le=10_000_000)]
Positive = Annotated[float, Field(gt=0, le=1e9)]


class Cards(NamedTuple):
    """A card, and how many of it there are."""

    number: int
    """0 = as many as it takes."""
    name: str
    on_machine: int = 0
    """Of them, on one of several machines; 0 = all on one."""

    def __str__(self) -> str:
        return f"{self.number} x {self.name}" if self.number else self.name


class ServingQuestion(Config):
    """What people ask: who wants how much of which model, on what, how fast."""

    users: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """People at once; each asks again when answered, after a pause."""
    rate: Positive | None = None
    """Instead of users: requests per second, whoever sends them."""
    thinking: Annotated[Tokens, Field(ge=0, le=10_000_000)] = 32768
    """Longest thinking, tokens: one trace in a hundred is cut there, the typical one is a tenth as long."""
    typical_thinking: Typical | None = None
    """Median thinking, tokens, where you know better than a tenth of the longest."""
    prompt: Typical = 512
    """Typical (median) prompt, tokens; one in a hundred is ten times as long."""
    answer: Typical = 256
    """Typical (median) visible answer, tokens; one in a hundred is ten times as long."""
    pause: float = Field(60.0, ge=0, le=1e7)
    """Seconds between an answer and a user's next question: reading and typing."""
    slo: str = "ttft<5s,tpot<50ms"
    """Targets that 99 of 100 requests must meet: ttft, visible (first visible token), tpot, e2e; e.g. visible<60s."""
    max_dollars_per_hour: Positive | None = None
    """All cards together; what costs more is out."""
    day: str | None = None
    """Load over a day, a bundled profile: reasoning-api, office-hours."""
    spare: int = Field(0, ge=0, le=100)
    """Copies beyond those needed; 1 is the n+1 rule."""
    prices: str | None = None
    """A YAML file of GPU prices and grid factors, before the bundled ones."""

    @field_validator("slo")
    @classmethod
    def _targets_are_read(cls, text: str) -> str:
        read_targets(text)
        return text

    @model_validator(mode="after")
    def _says_the_load(self) -> ServingQuestion:
        if (self.users is None) == (self.rate is None):
            raise ValueError("say --users (people at once) or --rate (requests per second), one of them")
        return self

    @model_validator(mode="after")
    def _typical_is_not_the_longest(self) -> ServingQuestion:
        if self.typical_thinking is not None and self.typical_thinking > self.thinking:
            raise ValueError(
                f"--typical-thinking {self.typical_thinking:,} is more than the longest, --thinking {self.thinking:,}; "
                f"--thinking {round(LONGEST * self.typical_thinking)} cuts one trace in a hundred"
            )
        return self

    @property
    def median_thinking(self) -> int:
        """Tokens of the typical trace's thinking."""
        return round(self.thinking / LONGEST) if self.typical_thinking is None else self.typical_thinking

    @property
    def longest(self) -> int:
        """Tokens of the longest request: prompt, thinking and answer."""
        return self.thinking + round(LONGEST * (self.prompt + self.answer))

    @property
    def assumed(self) -> tuple[str, ...]:
        """Names of the fields that nobody stated and that the figures hang on."""
        asked = ("prompt", "answer", "thinking", "pause", "slo")
        return tuple(
            name for name in asked if name not in self.model_fields_set and (name != "pause" or self.users)
        )


def read_targets(text: str) -> dict[str, float]:
    """Targets as keys of `slo`, milliseconds.

    Raises KvplanError with the words that are known.

    >>> read_targets("ttft<2s, tpot<50ms")
    {'ttft_ms': 2000.0, 'tpot_ms': 50.0}
    """
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _TARGET.match(part)
        if not match:
            raise KvplanError(f"{part!r}: write what<time, e.g. ttft<2s,tpot<50ms")
        word, number, unit = match.groups()
        key = TARGETS.get(word.casefold())
        if key is None:
            known = did_you_mean(word, TARGETS) or f"; known: {', '.join(TARGETS)}"
            raise KvplanError(f"{part!r}: no target is called {word}{known}")
        if unit is None:
            raise KvplanError(f"{part!r}: say the unit, e.g. {word}<{number}s or {word}<{number}ms")
        found[key] = float(number) * UNITS[unit]
    if not found:
        raise KvplanError("nothing says how slow is too slow; e.g. ttft<2s,tpot<50ms")
    return found


def read_cards(texts: Iterable[str]) -> tuple[Cards, ...]:
    """Cards as people write them: `2xh100` are two that there are, `h100` as many as it takes.

    Raises KvplanError for a card that nobody knows and for one named twice.

    >>> read_cards(["2xh100", "h200"])
    (Cards(number=2, name='h100-sxm', on_machine=0), Cards(number=0, name='h200', on_machine=0))
    """
    found: list[Cards] = []
    for text in texts:
        machines, each, name = split_machines(text)
        card = get_gpu(name)
        number = machines * each if name != text else 0
        found.append(Cards(number, card.name if _is_named(name) else name, each if machines > 1 else 0))
    names = [cards.name for cards in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise KvplanError(f"--gpu {twice}: named twice")
    return tuple(found) or tuple(Cards(0, get_gpu(name).name) for name in CARDS)


def _is_named(text: str) -> bool:
    """Whether a card stands in the table, rather than being stated or a file."""
    return "=" not in text and "/" not in text and not text.endswith((".yaml", ".yml"))


def make_scenario(
    model: str, cards: Iterable[Cards], question: ServingQuestion, deployment: Mapping[str, Any] | None = None
) -> Scenario:
    """The scenario whose recommendation answers the question.

    `deployment`: keys of the scenario that are settled already, e.g. {"engine": {"max_num_seqs": 64}, "sglang": {}};
    a parallel size or a KV dtype among them is not searched. Raises KvplanError for an unknown model, and for lengths
    that the model does not take.
    """
    longest = check_lengths(load_model(model), question)
    settled = dict(deployment or {})
    engine = {"max_model_len": longest, **settled.pop("engine", {})}
    ranks = engine.get("tensor_parallel_size")
    hosts = [[c.name, size] for c in cards for size in ([ranks] if ranks else sizes(c))]
    dtypes = [engine["kv_cache_dtype"]] if "kv_cache_dtype" in engine else ["auto", "fp8"]
    load: dict[str, Any] = {"users": question.users} if question.users else {"rate": question.rate}
    data: dict[str, Any] = {
        "name": "plan",
        "model": model,
        "gpu": hosts[0][0],
        "engine": engine,
        **settled,
        "workload": _workload(question),
        "slo": read_targets(question.slo),
        "pricing": {"file": None if question.prices is None else str(Path(question.prices).resolve())},
        "search": load
        | {
            "max_copies": MOST_COPIES,
            "spare": question.spare,
            "day": question.day,
            "max_dollars_per_hour": question.max_dollars_per_hour,
        }
        | {"over": {"gpu+engine.tensor_parallel_size": hosts, "engine.kv_cache_dtype": dtypes}},
    }
    return parse_scenario(data, "plan")


def sizes(cards: Cards) -> list[int]:
    """Cards of one copy that are tried: powers of two, up to a machine's or to those that there are.

    >>> sizes(Cards(8, "h100-sxm")), sizes(Cards(8, "a10g", on_machine=4))
    ([1, 2, 4, 8], [1, 2, 4])
    """
    most = min(cards.number or LARGEST_TP, cards.on_machine or LARGEST_TP, LARGEST_TP)
    return [1 << i for i in range(most.bit_length())]


def check_lengths(model: ModelSpec, question: ServingQuestion) -> int:
    """The context to serve, a multiple of 1,024; KvplanError where the model takes less."""
    longest = cdiv(question.longest, 1024) * 1024
    if longest <= model.max_model_len:
        return longest
    if question.longest <= model.max_model_len:
        return model.max_model_len
    room = model.max_model_len - (question.longest - question.thinking)
    shorter = f"; --thinking {room} would fit" if room > 0 else "; shorten --prompt or --answer"
    raise KvplanError(
        f"{model.name} takes {model.max_model_len:,} tokens; the longest prompt, thinking and answer together are "
        f"{question.longest:,}{shorter}"
    )


def _workload(question: ServingQuestion) -> dict[str, Any]:
    arrivals: dict[str, Any] = {"kind": "poisson", "rate": question.rate}
    if question.users:
        arrivals = {
            "kind": "closed_loop",
            "concurrency": min(question.users, 1_000_000),
            "pause_s": question.pause,
        }
    return {
        "arrivals": arrivals,
        "prompt": _length(question.prompt),
        "thinking": _length(question.median_thinking, question.thinking),
        "answer": _length(question.answer),
    }


def _length(median: int, longest: int | None = None) -> Any:
    """A lognormal length; no thinking is none."""
    if longest == 0:
        return 0
    high = round(median * LONGEST) if longest is None else longest
    return {"kind": "lognormal", "median": max(1, median), "sigma": SPREAD, "high": high}
