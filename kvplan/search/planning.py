"""`plan`: a question, the recommendation that answers it, the verdict in a line, and how sure all of it is.

    question -> scenario -> recommend -> verdict
                               \\-> the best once more with one assumption changed -> what the answer hangs on

What people ask is `question`'s; what is computed, `recommending`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

from pydantic import ValidationError

import kvplan
from kvplan.ground.config import complaint
from kvplan.ground.errors import DoesNotFit, KvplanError, did_you_mean
from kvplan.ground.gpu import get_gpu
from kvplan.ground.tables import Part, counted, folded, text_of
from kvplan.memory.answers import Plan
from kvplan.memory.demand import Demand
from kvplan.memory.forward import estimate
from kvplan.models.load import load_model
from kvplan.scenario.schema import Scenario
from kvplan.scenario.space import Search
from kvplan.search.candidates import Carries, Measure
from kvplan.search.execution import Execution, default_workers, run_scenarios
from kvplan.search.grid import make_axes, make_points, read_base
from kvplan.search.question import Cards, ServingQuestion, make_scenario, read_cards, sizes
from kvplan.search.recommendation import EXPLAINED, Candidate, Recommendation, ranking_table
from kvplan.search.recommending import recommend
from kvplan.search.sweeping import Progress
from kvplan.workload.arrivals import ClosedLoop
from kvplan.workload.lengths import Constant, Lognormal

SCHEMA_VERSION = 1
TABLE_ROWS = 6
SURER = "To be surer"
"""What stands before the ways to smaller doubts."""
FAR = 1000
"""Where so many times the cards are needed, as many of another card are not tried: none is a thousand times as good."""
GPU_KEY, TP_KEY = "gpu", "engine.tensor_parallel_size"


class Owned(NamedTuple):
    """What the cards that there are do for the question."""

    cards: Cards
    best: Candidate | None
    """The cheapest deployment on this card; None where none meets the targets."""
    copies: int
    """Copies of it that they hold."""
    load: float
    """Users, or requests a second, that those carry."""

    @property
    def is_enough(self) -> bool:
        """Whether they carry what is asked, spares included."""
        return self.best is not None and (self.best.num_gpus or 0) <= self.cards.number

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "gpu": self.cards.name,
            "count": self.cards.number,
            "is_enough": self.is_enough,
            "copies": self.copies,
            "load": self.load,
            "num_gpus_needed": self.best.num_gpus if self.best else None,
        }


class Change(NamedTuple):
    """One assumption changed, the best deployment measured again."""

    what: str
    copies: int | None
    """Copies then needed; None = the targets cannot be met."""
    usd_per_hour: float | None


@dataclass(slots=True)
class ServingAnswer:
    """A verdict, the ranking behind it, and what they hang on."""

    question: ServingQuestion
    cards: tuple[Cards, ...]
    found: Recommendation
    owned: tuple[Owned, ...]
    plan: Plan | None
    """Memory of the best deployment."""
    changes: tuple[Change, ...]
    others: tuple[Cards, ...] = ()
    """As many of other cards that carry it, looked for where those that there are do not."""

    @property
    def best(self) -> Candidate | None:
        """The cheapest deployment of all."""
        return self.found.best

    @property
    def fits(self) -> bool:
        """Whether the cards that there are carry the load; any will do where nobody counted them."""
        return any(o.is_enough for o in self.owned) if self.owned else self.best is not None

    @property
    def is_sure(self) -> bool:
        """Whether the verdict stands at the slow end of what steps may take too."""
        enough = [o for o in self.owned if o.is_enough]
        return not enough or any(map(_is_sure, enough))

    @property
    def exit_code(self) -> int:
        """0 fits, 1 does not, 130 interrupted."""
        return 130 if self.found.interrupted else int(not self.fits)

    @property
    def verdict(self) -> str:
        """The answer in a line."""
        asked = f"{_model(self)} for {_load_text(self.question)}"
        if self.best is None:
            return f"no: {asked}: {self.found.reason}"
        need = f"{_copies_text(self.best)} (${self.best.usd_per_hour:,.2f}/h)"
        if not self.owned:
            return f"{asked} takes {need}, the cheapest of {_cards_text(self.cards)}"
        enough = [o for o in self.owned if o.is_enough]
        if enough:
            word = "fits"
            if not self.is_sure and enough[0].best:
                word += f" unless steps take {enough[0].best.step_high:.2g} times as long, as they may"
            return f"{word}: {asked} on {', '.join(str(o.cards) for o in enough)}; {_headroom(enough[0])}"
        instead = [str(cards) for cards in self.others]
        would = f", or {' or '.join(instead)}" if instead else ""
        return f"does not fit: {'; '.join(map(self._short, self.owned))}; {asked} takes {need}{would}"

    def _short(self, owned: Owned) -> str:
        if owned.best is None:
            return f"on {owned.cards.name} nothing meets the targets"
        unit = "users" if self.question.users else "requests a second"
        return f"{owned.cards} carry {owned.load:,.3g} {unit}"

    def to_dict(self) -> dict[str, Any]:
        """The `--json` document: the question, the verdict, then `kvplan recommend`'s document."""
        memory = None if self.plan is None else self.plan.cache_tokens
        return {
            "schema_version": SCHEMA_VERSION,
            "kvplan_version": kvplan.__version__,
            "question": self.question.model_dump(mode="json") | {"model": self.found.scenario.model},
            "assumed": list(self.question.assumed),
            "fits": self.fits,
            "verdict": self.verdict,
            "is_sure": self.is_sure,
            "gpus": [owned.to_dict() for owned in self.owned],
            "other_gpus": [{"gpu": cards.name, "count": cards.number} for cards in self.others],
            "cache_tokens": None if memory is None else {"value": memory.value, "low": memory.low, "high": memory.high},
            "changes": [change._asdict() for change in self.changes],
            "recommendation": self.found.to_dict(),
        }  # fmt: skip

    def to_frame(self) -> Any:
        """The ranked deployments as a pandas DataFrame; KvplanError where pandas is missing."""
        return self.found.to_frame()

    @property
    def plot(self) -> Any:
        """Pictures of the ranking, Altair charts (`dir(answer.plot)`); those of the memory are `answer.plan.plot`."""
        return self.found.plot

    def _repr_html_(self) -> str:
        """The answer for notebooks."""
        return f"<pre>{escape(str(self))}</pre>"

    def parts(self) -> list[Part]:
        """Verdict; what was asked; deployments; what to run; how sure."""
        parts: list[Part] = [self.verdict, "", *folded(question_lines(self.question))]
        feasible = [c for c in self.found.candidates if c.feasible]
        if feasible:
            parts += ["", ranking_table(self.found, feasible[:TABLE_ROWS]), *folded(EXPLAINED)]
            parts += ["", *run_lines(self), "", *folded(doubt_lines(self))]
        return parts

    def __str__(self) -> str:
        return text_of(self.parts())

    def __repr__(self) -> str:
        """The verdict; `print(answer)` has all of it."""
        return f"<ServingAnswer: {self.verdict}>"


def plan(
    model: str,
    gpu: str | Sequence[str] = (),
    question: ServingQuestion | None = None,
    *,
    deployment: Mapping[str, Any] | None = None,
    workers: int | None = 1,
    progress: Progress | None = None,
    **asked: Any,
) -> ServingAnswer:
    """Answer one question: does it work, what should run, what does it cost, how sure is that.

    Args:
        model: a bundled name, a config.json or a folder.
        gpu: one card or several; "2xh100": two that there are, "h100": as many as it takes. None named: `CARDS`.
        question: load, lengths, targets.
        deployment: what is settled already, as in `make_scenario`: {"engine": {"max_num_seqs": 64}, "sglang": {}}.
        workers: processes; None = one per core. The answer is the same.
        progress: called with (done, total) candidates.
        **asked: fields of `ServingQuestion` by name, instead of `question`; counts as vLLM reads them: "32K".

    Raises:
        KvplanError: an unknown name, a field out of range, lengths that the model does not take. What does not fit
            is an answer: `ServingAnswer.fits`.

    >>> answer = plan("Qwen/Qwen3-8B", "1xl40s", users=4, thinking="2K")
    >>> answer.fits, answer.best.num_gpus
    (True, 1)
    """
    if question is not None and asked:
        raise KvplanError(f"{min(asked)} is given beside a whole question; say it there")
    question = question or _question(asked)
    cards = read_cards([gpu] if isinstance(gpu, str) else gpu)
    scenario = make_scenario(model, cards, question, deployment)
    found = recommend(scenario, workers=workers, progress=progress)
    owned = tuple(_owned(c, found, question) for c in cards if c.number)
    best = found.best
    if best is None or best.scenario is None:
        return ServingAnswer(question, cards, found, owned, None, ())
    answer = ServingAnswer(question, cards, found, owned, memory_of(best.scenario, question), ())
    if found.interrupted:
        return answer
    try:
        execution = Execution("local", default_workers() if workers is None else workers)
        answer.changes = tuple(_changes(question, best, execution, found.search))
        if _is_near(answer):
            answer.others = tuple(_others(model, question, cards, deployment, execution))
    except KeyboardInterrupt:  # the ranking stands without them
        found.interrupted = True
    return answer


def _question(asked: dict[str, Any]) -> ServingQuestion:
    known = ServingQuestion.model_fields
    if unknown := sorted(set(asked) - set(known)):
        raise KvplanError(f"plan() has no keyword {unknown[0]!r}{did_you_mean(unknown[0], known)}")
    try:
        return ServingQuestion(**asked)
    except ValidationError as error:
        raise KvplanError(complaint(error)) from None


def _is_near(answer: ServingAnswer) -> bool:
    """Whether the cards that there are do not carry the load, but so many of another card might."""
    best, most = answer.best, max((c.number for c in answer.cards), default=0)
    assert best is not None
    return not answer.fits and (best.num_gpus or 0) <= FAR * most


def first_look(model: str, cards: Sequence[Cards], question: ServingQuestion) -> str:
    """What the closed form says at once: how many of the longest requests the fewest cards that start it hold.

    Raises KvplanError as `plan` does.
    """
    scenario = make_scenario(model, cards, question)
    reason = ""
    for size in sizes(cards[0]):
        args = scenario.engine.model_copy(update={"tensor_parallel_size": size})
        try:
            planned = estimate(load_model(model), get_gpu(cards[0].name), args, engine=scenario.engine_of)
        except KvplanError as error:
            reason = str(error)
            continue
        if planned.serves:
            typical = estimate(
                load_model(model), get_gpu(cards[0].name), args, engine=scenario.engine_of,
                demand=Demand(input_len=question.prompt, output_len=max(1, question.median_thinking + question.answer)),
            )  # fmt: skip
            return (
                f"at first sight: {size} x {cards[0].name} hold {int(planned.traces.value):,} of the longest requests "
                f"({scenario.engine.max_model_len:,} tokens) at once, {int(typical.traces.value):,} of the typical"
            )
        reason = planned.refusal.reason if planned.refusal else ""
    return f"at first sight: {sizes(cards[0])[-1]} x {cards[0].name} do not start it: {reason}"


def memory_of(scenario: Scenario, question: ServingQuestion) -> Plan | None:
    """The plan of a deployment's memory, at its longest requests."""
    longest = Demand(input_len=question.prompt, output_len=max(1, question.thinking + question.answer))
    model, card = load_model(scenario.model), get_gpu(scenario.gpu)
    try:
        return estimate(model, card, scenario.engine, engine=scenario.engine_of, demand=longest)
    except DoesNotFit:
        return None


def _owned(cards: Cards, found: Recommendation, question: ServingQuestion) -> Owned:
    """What so many cards carry: the deployment that needs fewest of them, as often as they hold it."""
    mine = [c for c in found.candidates if c.feasible and c.settings[GPU_KEY] == cards.name]
    held = [(cards.number // c.figures["num_gpus_per_copy"] - question.spare, c) for c in mine]
    carried = [(copies * (c.low or c.highest or 0.0), copies, c) for copies, c in held if copies > 0]
    if not carried:
        return Owned(cards, mine[0] if mine else None, 0, 0.0)
    load, copies, best = max(carried, key=lambda each: (_is_enough(each[2], cards), each[0]))
    return Owned(cards, best, copies, load)


def _others(
    model: str,
    question: ServingQuestion,
    cards: Sequence[Cards],
    deployment: Mapping[str, Any] | None,
    execution: Execution,
) -> Iterable[Cards]:
    """As many of the cards that nobody named, where those carry the load: a trial each, not what they carry at most."""
    count, named = max(c.number for c in cards), {get_gpu(c.name).name for c in cards}
    asked = tuple(Cards(count, c.name) for c in read_cards(()) if c.name not in named)
    if not asked:
        return []
    scenario = make_scenario(model, asked, question, deployment)
    assert scenario.search is not None
    points = make_points(read_base(scenario), make_axes(scenario.search.over))
    candidates = [p.scenario for p in points if p.scenario]
    rows = run_scenarios(
        candidates, execution, Carries(scenario.search.model_copy(update={"max_gpus": count}))
    )
    carry = {candidate.gpu for candidate, row in zip(candidates, rows, strict=True) if row["met"]}
    return [c for c in asked if c.name in carry]


def _is_enough(candidate: Candidate, cards: Cards) -> bool:
    return candidate.num_gpus is not None and candidate.num_gpus <= cards.number


def _changes(
    question: ServingQuestion, best: Candidate, execution: Execution, search: Search
) -> Iterable[Change]:
    """What the best needs when one thing is not as it was taken to be."""
    assert best.scenario is not None
    variants = list(_variants(question, best.scenario))
    rows = run_scenarios([scenario for _, scenario in variants], execution, Measure(search))
    for (what, _), row in zip(variants, rows, strict=True):
        copies = None if row["error"] else row["copies"] + search.spare
        yield Change(what, copies, None if copies is None else copies * row["usd_per_hour_per_copy"])


def _variants(question: ServingQuestion, scenario: Scenario) -> Iterable[tuple[str, Scenario]]:
    """The scenario with one assumption changed, and that in words."""

    def changed(what: str, **update: Any) -> tuple[str, Scenario]:
        work = scenario.workload.model_copy(update=update)
        return what, scenario.model_copy(update={"workload": work})

    work = scenario.workload
    if isinstance(work.thinking, Lognormal):
        twice = min(2 * question.median_thinking, question.thinking)
        yield changed(
            f"typical thinking {twice:,} tokens instead of {question.median_thinking:,}",
            thinking=work.thinking.model_copy(update={"median": twice}),
        )
    yield changed(f"every prompt {4 * question.prompt:,} tokens", prompt=Constant(value=4 * question.prompt))
    if isinstance(work.arrivals, ClosedLoop) and question.pause:
        yield changed(
            f"a pause of {question.pause / 2:g} s instead of {question.pause:g}",
            arrivals=work.arrivals.model_copy(update={"pause_s": question.pause / 2}),
        )


# --- words -------------------------------------------------------------------------------------


def _model(answer: ServingAnswer) -> str:
    return answer.found.scenario.model.rpartition("/")[2]


def _load_text(question: ServingQuestion) -> str:
    if question.users:
        return counted(question.users, "user")
    return f"{question.rate:g} requests a second"


def _cards_text(cards: Sequence[Cards]) -> str:
    return ", ".join(c.name for c in cards)


def _is_sure(owned: Owned) -> bool:
    """Whether the cards carry the load at the slow end of what its steps may take too."""
    best = owned.best
    assert best is not None
    if best.usd_per_hour is None or best.usd_per_hour_high is None or best.num_gpus is None:
        return best.usd_per_hour_high is not None
    return best.num_gpus * best.usd_per_hour_high <= best.usd_per_hour * owned.cards.number * (1 + 1e-9)


def _copies_text(best: Candidate) -> str:
    each = best.figures["num_gpus_per_copy"]
    number = (best.num_gpus or 0) // each
    card = best.settings[GPU_KEY]
    return f"{counted(number, 'copy', 'copies')} of {each} x {card}"


def _headroom(owned: Owned) -> str:
    best = owned.best
    assert best is not None
    room = f"{'at least ' if best.at_least else ''}{best.headroom:.0%}"
    copies = f"{_copies_text(best)}, " if best.figures["num_gpus_per_copy"] != owned.cards.number else ""
    return f"{copies}${best.usd_per_hour:,.2f}/h, the load may grow by {room}"


def question_rows(q: ServingQuestion) -> list[tuple[str, str, str]]:
    """What was asked: the name, the value, and whether anybody said it."""
    mark = {name: f"assumed: --{name}" for name in q.assumed}
    load = ("load", f"{q.rate:g} requests a second, Poisson", "") if q.users is None else (
        "users", f"{q.users:,}, asking again {q.pause:g} s after an answer", mark.get("pause", "")
    )  # fmt: skip
    rows = [load, ("prompt", f"{q.prompt:,} tokens, typical", mark.get("prompt", ""))]
    if q.thinking:
        tenth = "assumed: a tenth; --typical-thinking"
        text = f"{q.median_thinking:,} tokens, typical; {q.thinking:,} at most"
        rows.append(("thinking", text, "" if q.typical_thinking else tenth))
    rows.append(("answer", f"{q.answer:,} tokens, typical", mark.get("answer", "")))
    rows.append(("targets", f"{q.slo}, in 99 of 100 requests", mark.get("slo", "")))
    return rows


def question_lines(question: ServingQuestion) -> list[str]:
    """The same as text."""
    rows = question_rows(question)
    width = max(len(text) for _, text, _ in rows)
    return ["Asked", *(f"  {name:<10}{text:<{width}}   {note}".rstrip() for name, text, note in rows)]


def run_lines(answer: ServingAnswer) -> list[str]:
    """The command of the best deployment, and how often it runs."""
    best = answer.best
    assert best is not None
    spare = f", {answer.found.search.spare} of them spare" if answer.found.search.spare else ""
    number = (best.num_gpus or 0) // best.figures["num_gpus_per_copy"]
    lines = [
        f"Run {'once' if number == 1 else f'{number:,} times'}{spare}",
        *(f"  {line}" for line in best.commands),
    ]
    if best.lift:
        lines.append(f"  to lift its limit ({best.limited_by}): {best.lift}")
    return lines


def doubt_lines(answer: ServingAnswer) -> list[str]:
    """How sure: each figure with its range and source, what changes the answer, what would shrink the doubt."""
    best, unit = answer.best, "users" if answer.question.users else "requests a second"
    assert best is not None
    lines = ["How sure"]
    low, high = best.usd_per_hour_low, best.usd_per_hour_high
    if low is not None and low != high:
        most = "any price" if high is None else f"{high:,.2f}/h"
        lines.append(f"  ${low:,.2f} to {most} if steps take {best.step_low:.2g} to {best.step_high:.2g}"
                     " times as long (nine in ten do)")  # fmt: skip
    if best.low is not None and best.high is not None:
        lines.append(
            f"  one copy carries {best.low:.3g} to {best.high:.3g} {unit} over {best.num_draws} draws of the load"
        )
    if answer.plan:
        tokens = answer.plan.cache_tokens
        lines.append(f"  its KV pool: {tokens.value:,.0f} tokens ({tokens.low:,.0f} to {tokens.high:,.0f})")
    number = (best.num_gpus or 0) // best.figures["num_gpus_per_copy"]
    if number > 1:
        lines.append(
            f"  one of {number:,} copies was simulated, at its share of the load: a router that spreads sessions evenly"
        )
    lines += [f"  {change.what}: {_change_text(change)}" for change in answer.changes]
    lines += _ranking(answer.found)
    lines += [f"  steps: {best.step_time}", f"  prices: {best.price_source}"]
    return [*lines, SURER, *(f"  {line}" for line in _shrink(best))]


def _change_text(change: Change) -> str:
    if change.copies is None:
        return "the targets cannot be met"
    return f"{counted(change.copies, 'copy', 'copies')}, ${change.usd_per_hour:,.2f}/h"


def _ranking(found: Recommendation) -> list[str]:
    """Whether the first place is the first within the error."""
    tied = found.reason.partition("; tied with ")[2]
    return [f"  the ranking: tied with {tied}"] if tied else []


def _shrink(best: Candidate) -> list[str]:
    card = best.settings[GPU_KEY]
    now = "none was measured" if best.is_assumed else "another server's are used now"
    return [
        "lengths decide most: replay your own requests (workload.trace, or kvplan compare-run)",
        f"steps: kvplan calibrate on your {card}; {now}",
        "memory: kvplan reconcile LOG of one start of the command above",
    ]
