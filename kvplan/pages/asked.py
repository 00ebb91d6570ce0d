"""One question for all tabs: what stands in the sentence and in the sidebar, and what each tab makes of it.

Reads text as people type it, by the parsers of the command line, and refuses what that refuses. Loads no Streamlit.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from math import exp, log
from statistics import NormalDist
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from kvplan.engines.cards import cards as split_cards
from kvplan.engines.flags import EngineArgs
from kvplan.ground.config import complaint
from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.ground.gpu import GpuSpec, get_gpu, split_count
from kvplan.ground.units import human_readable_int
from kvplan.memory.demand import Demand
from kvplan.models.load import aliases, bundled_models, find_bundled
from kvplan.models.spec import ModelSpec
from kvplan.profiles.profile import pick
from kvplan.scenario.schema import Scenario, load_scenario, parse_scenario, read_scenario
from kvplan.search.question import (
    LONGEST,
    SPREAD,
    Cards,
    ServingQuestion,
    check_lengths,
    make_scenario,
    read_cards,
)
from kvplan.workload.lengths import Constant, Length, Lognormal

OWN = "config.json"
"""Name of a visitor's own model, in the folder where work runs."""
TABLE = "pass_table.csv"
ENGINES = ("vllm", "sglang", "tensorrt-llm")
LONGEST_TEXT = 200
"""Characters of one input; more is no number, name or target."""
ROUNDS = 10
"""Questions of each user that a simulation asks, if nobody says how many requests."""
FEWEST, MOST = 200, 20_000


class Asked(NamedTuple):
    """Model, cards, engine and load, read and checked."""

    model: str
    """A bundled name, or `OWN`."""
    config: str
    """Text of the visitor's own config.json; empty for a bundled model."""
    gpu: str
    """As typed: 2xh100, h200, gib=20,gbps=672."""
    engine: str
    args: EngineArgs
    question: ServingQuestion
    num_samples: int = 1
    num_requests: int = 1
    also: tuple[str, ...] = ()
    """Other cards that the recommendation may take."""
    num_simulated: int = 0
    """Requests of a simulation; 0 = ten of each user, at least 200."""
    seed: int = 0
    drive: str = ""
    """What a simulation's files below host memory lie on; empty: as the estimate takes it."""

    @property
    def files(self) -> dict[str, bytes]:
        """What lies in the folder where its work runs."""
        return {OWN: self.config.encode()} if self.config else {}

    @property
    def cards(self) -> Cards:
        """The card, and how many there are; 0 = as many as it takes."""
        return read_cards([self.gpu])[0]

    @property
    def card(self) -> GpuSpec:
        """The card."""
        return get_gpu(self.cards.name)

    @property
    def is_open(self) -> bool:
        """Whether the answer may take other cards, or more of them a copy, than the flags do: nobody said."""
        stated = "tensor_parallel_size" in self.args.model_fields_set
        return bool(self.also) or not (self.cards.number or stated)

    @property
    def flags(self) -> EngineArgs:
        """The engine's flags; several cards are tensor-parallel where nothing else says how they are used.

        Raises KvplanError where the parallel sizes take more cards than there are.
        """
        return split_cards(self.gpu, self.args)[1]

    def served(self, model: ModelSpec) -> EngineArgs:
        """The flags with the context that the longest request needs, where none is stated.

        Raises KvplanError for lengths that the model does not take.
        """
        longest = check_lengths(model, self.question)
        flags = self.flags
        return (
            flags if flags.max_model_len is not None else flags.model_copy(update={"max_model_len": longest})
        )

    @property
    def demand(self) -> Demand:
        """What is to live at once: the longest thinking, the typical prompt and answer."""
        asked = self.question
        return Demand(
            input_len=asked.prompt, output_len=max(1, asked.thinking + asked.answer),
            num_samples=self.num_samples, num_requests=self.num_requests,
        )  # fmt: skip

    @property
    def typical(self) -> Demand:
        """The same for the typical request."""
        asked = self.question
        return self.demand.model_copy(update={"output_len": max(1, asked.median_thinking + asked.answer)})

    @property
    def lengths(self) -> tuple[Length, Length, Length]:
        """Distributions of prompt, thinking and answer, as the question's scenario has them."""
        asked = self.question
        return (
            _spread(asked.prompt, round(LONGEST * asked.prompt)),
            _spread(asked.median_thinking, asked.thinking) if asked.thinking else Constant(value=0),
            _spread(asked.answer, round(LONGEST * asked.answer)),
        )

    @property
    def deployment(self) -> dict[str, Any]:
        """Keys of a scenario that say the engine and its stated flags."""
        told: dict[str, Any] = {"engine": self.args.model_dump(mode="json", exclude_unset=True)}
        if self.engine == "sglang":
            told["sglang"] = {}
        if self.engine == "tensorrt-llm":
            told["admission"] = "reserve_max"
            profile, doubt = pick(self.card.name, self.engine)
            if profile is not None and not doubt:
                told["step_time"] = {"profile": profile.name}
        return told

    @property
    def settled(self) -> dict[str, Any]:
        """The same for a recommendation, which looks for parallel sizes and KV dtypes unless they are stated."""
        return {key: value for key, value in self.deployment.items() if value or key == "sglang"}

    def simulation(self) -> Scenario:
        """The question as a scenario: these cards, this engine, these people asking again and again.

        Raises KvplanError for lengths that the model does not take, and for flags that are not simulated.
        """
        flags = self.flags
        base = make_scenario(self.model, [self.cards], self.question, self.deployment)
        data = base.model_dump(mode="json", exclude_defaults=True, exclude={"search"})
        engine = {**data.get("engine", {}), **flags.model_dump(mode="json", exclude_defaults=True)}
        if self.drive and engine.pop("kv_transfer_config", None):
            data["kv_offloading"] = {
                "spec_name": "TieringOffloadingSpec",
                "secondary_tiers": [{"drive": self.drive}],
            }
        load = {
            **data["workload"],
            "num_requests": self.num_simulated or self.usual_requests,
            "seed": self.seed,
        }
        return parse_scenario(
            data | {"name": "question", "engine": engine, "workload": load, "replicas": self.replicas},
            "the question",
        )

    @property
    def replicas(self) -> int:
        """Copies that the cards hold; one where nobody counted the cards."""
        flags = self.flags
        each = flags.tensor_parallel_size * flags.pipeline_parallel_size * flags.data_parallel_size
        return max(1, self.cards.number // each)

    @property
    def usual_requests(self) -> int:
        """Requests that a simulation takes."""
        return min(MOST, max(FEWEST, ROUNDS * (self.question.users or 0)))

    def strategy_changes(self, quality: Mapping[str, Any] | None) -> list[str]:
        """Changes (`--set`) that put a scenario of problems on this model, these cards, this load and these lengths.

        `quality`: the scenario's quality set, whose lengths become the question's; None: a table brings its own.
        """
        asked, flags = self.question, self.flags.model_dump(mode="json", exclude_defaults=True)
        told = self.deployment
        changes: dict[str, Any] = {
            "model": self.model,
            "gpu": self.cards.name,
            "engine": told["engine"] | flags,
        }
        changes |= {key: told[key] for key in ("sglang", "admission", "step_time") if key in told}
        changes["replicas"] = self.replicas
        base = make_scenario(self.model, [self.cards], asked, told).model_dump(
            mode="json", exclude_defaults=True
        )
        changes["problems.prompt"] = base["workload"]["prompt"]
        changes["problems.arrivals"] = base["workload"]["arrivals"]
        if quality is not None and asked.thinking:
            lengths = {"thinking_tokens": mean_thinking(asked), "answer_tokens": asked.answer}
            changes["problems.quality"] = {**quality, **lengths}
        return [f"{key}={one_line_yaml(value)}" for key, value in changes.items()]

    def words(self, command: str, flags: EngineArgs | None = None) -> str:
        """The command line that asks the same: plan, or estimate with the flags that its plan took."""
        words = ["kvplan", command, self.model, f"--gpu={self.gpu}"]
        if command == "plan":
            told = self.question.model_dump(exclude_defaults=True)
            words += [f"--gpu={name}" for name in self.also]
        else:
            told = (flags or self.args).model_dump(exclude_defaults=True) | self.demand.model_dump(
                exclude_defaults=True
            )
            words += [f"--engine={self.engine}"] if self.engine != ENGINES[0] else []
        for name, value in told.items():
            words += flag_words("--" + name.replace("_", "-"), value)
        return shlex.join(words)


def _spread(median: int, longest: int) -> Length:
    return Lognormal(kind="lognormal", median=max(1, median), sigma=SPREAD, high=longest)


def flag_words(flag: str, value: object) -> list[str]:
    """A flag as the command line takes it."""
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag.strip('-')}"]
    return [f"{flag}={one}" for one in (value if isinstance(value, tuple) else (value,))]


def one_line_yaml(value: Any) -> str:
    """A value as `--set` reads it."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**9, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def read_question(told: Mapping[str, str]) -> ServingQuestion:
    """The question from text as typed, name by name; empty text is what nobody said. Raises KvplanError in one line."""
    said = {name: text.strip() for name, text in told.items() if text.strip()}
    for name, text in said.items():
        check_text(name, text)
    if "users" in said:
        said["users"] = str(_count("users", said["users"]))
    try:
        return ServingQuestion.model_validate(said)
    except ValidationError as error:
        raise KvplanError(_told(error)) from None


def read_flags(told: Mapping[str, Any]) -> EngineArgs:
    """The engine's flags from text as typed. Raises KvplanError in one line."""
    said = {name: text for name, text in told.items() if text not in (None, "", False)}
    for name, text in said.items():
        if isinstance(text, str):
            check_text(name, text)
    try:
        return EngineArgs.model_validate(said)
    except ValidationError as error:
        raise KvplanError(_told(error)) from None


def file_tier(locality: str) -> dict[str, Any]:
    """vLLM's `kv_transfer_config` of host memory with its file system tier below; the folder is for whoever runs it."""
    tier = {"type": "fs", "root_dir": "/mnt/kv", "locality": locality.upper()}
    extra = {"spec_name": "TieringOffloadingSpec", "secondary_tiers": [tier]}
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": extra,
    }


def _told(error: ValidationError) -> str:
    """The first complaint, an input of any length cut."""
    text = complaint(error)
    return text if len(text) <= 2 * LONGEST_TEXT else text[: 2 * LONGEST_TEXT] + " ..."


def _count(name: str, text: str) -> int:
    try:
        return human_readable_int(text)
    except KvplanError as error:
        raise KvplanError(f"{name}: {error}") from None


def read_number(name: str, text: str, default: int, low: int, high: int) -> int:
    """A count as typed. Raises KvplanError outside of low to high."""
    if not text.strip():
        return default
    check_text(name, text)
    value = _count(name, text)
    if not low <= value <= high:
        raise KvplanError(f"{name}: {value:,} must be {low:,} to {high:,}")
    return value


def check_text(name: str, text: str) -> None:
    """Raise KvplanError for an input that is too long to be one."""
    if len(text) > LONGEST_TEXT:
        raise KvplanError(
            f"{name}: {len(text):,} characters, which is no value of it; it begins {text[:24]!r}"
        )


def check_model(name: str) -> str:
    """A bundled model by its listed name, however it is written. Raises KvplanError with the closest names."""
    check_text("model", name)
    known = (*bundled_models(), *aliases())
    if find_bundled(name) is None:
        close = did_you_mean(name, [*known, *(one.rpartition("/")[2] for one in known)])
        raise KvplanError(
            f"model {name!r} is not bundled: its config.json would do (in the sidebar){close or ''}"
        )
    return next((one for one in known if one.casefold() == name.casefold()), name)


def check_card(text: str) -> str:
    """A card of the table or a stated one, with a number in front or without. Raises KvplanError."""
    check_text("cards", text)
    name = split_count(text.strip())[1].strip()
    if name.casefold() == "local" or name.casefold().endswith((".yaml", ".yml")):
        raise KvplanError(
            f"cards {text!r}: here a card is a name of `kvplan gpus`, or stated as gib=20,gbps=672,tflops=44"
        )
    get_gpu(name)
    return text.strip()


def strategy_scenario(
    source: str, asked: Asked | None, changes: Sequence[str] = (), has_table: bool = False
) -> Scenario:
    """A scenario of problems, on the question's model, cards, load and lengths if there is one.

    `source`: a bundled name or a file of the visitor's. Raises KvplanError.
    """
    own = load_scenario(source).problems
    if own is None:
        raise KvplanError("nothing to compare: the scenario has no `problems` with `strategies`")
    taken: list[str] = []
    if asked is not None:
        quality = None if has_table else own.quality.model_dump(mode="json", exclude_defaults=True)
        taken = asked.strategy_changes(quality)
    if has_table:
        taken.append(f"problems.pass_table={TABLE}")
    data, file = read_scenario(source, [*taken, *changes])
    scenario = parse_scenario(data, file.name)  # files that it names lie where the work runs
    if scenario.problems is None:
        raise KvplanError("nothing to compare: the scenario has no `problems` with `strategies`")
    return scenario


def mean_thinking(question: ServingQuestion) -> int:
    """Mean of the question's thinking, tokens: a lognormal of median m and spread s, cut at its longest c.

    E[min(X, c)] = m e^(s^2/2) Phi(ln(c/m)/s - s) + c (1 - Phi(ln(c/m)/s)).
    """
    m, c, phi = max(1, question.median_thinking), max(1, question.thinking), NormalDist().cdf
    z = log(c / m) / SPREAD
    return max(1, round(m * exp(SPREAD**2 / 2) * phi(z - SPREAD) + c * (1 - phi(z))))
