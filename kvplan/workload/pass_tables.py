"""Samples that somebody drew and graded: a CSV or JSONL of one's own, or what an evaluation harness wrote.

`read_pass_table` makes one `Samples` per problem of it and says in one line what it read. A row that is damaged is
named by its number; nothing is guessed silently: what stands for token counts that a file lacks is said.
Knows no clock and no engine.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import exp, isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from kvplan.ground.config import Config
from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.ground.tables import counted
from kvplan.workload.bench_result import json_of, read_text
from kvplan.workload.lengths import LONGEST
from kvplan.workload.quality_sets import Samples
from kvplan.workload.strategies.strategy import RIGHT

Format = Literal["auto", "csv", "jsonl", "json", "lm_eval", "livecodebench", "opencompass"]
COLUMNS = ("problem", "sample", "correct", "tokens", "score", "answer", "text")


class PassTable(Config):
    """A file of graded samples, and where it is unlike the others."""

    path: str | tuple[str, ...]
    """Relative to the scenario file; problems of one name in several files are the same, run again."""
    format: Format = "auto"
    """csv, jsonl, json (rows of problem, sample, correct, tokens and, where there are, score, answer); lm_eval
    (samples_*.jsonl of lm-evaluation-harness), livecodebench (*_eval_all.json), opencompass (results/*.json);
    auto = by its content."""
    fields: dict[str, str] = Field(default_factory=dict, max_length=len(COLUMNS))
    """Which key of the file is problem, sample, correct, tokens, score, answer or text; dots go into objects."""
    filter: str = ""
    """lm_eval: which answer filter's rows; empty = the first that the file has."""
    characters_per_token: float = Field(4.0, gt=0, le=100)
    """Where a file has texts and no token counts; an assumption."""

    @property
    def paths(self) -> tuple[str, ...]:
        """All files."""
        return (self.path,) if isinstance(self.path, str) else self.path


def as_pass_table(said: str | PassTable) -> PassTable:
    """A file's name stands for the file with all defaults."""
    return PassTable(path=said) if isinstance(said, str) else said


class PassTableRead(NamedTuple):
    """What was read."""

    problems: dict[str, Samples]
    said: str
    """What it is, in one line."""


class _Row(NamedTuple):
    """One sample, its values still as the file has them."""

    number: int
    problem: str
    sample: Any
    correct: Any
    tokens: Any
    score: Any = None
    answer: Any = None
    text: Any = None


class _Keys(NamedTuple):
    """Where a format keeps what; the first key that a record has counts."""

    problem: tuple[str, ...]
    correct: tuple[str, ...]
    sample: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ("tokens", "num_tokens", "completion_tokens", "output_tokens", "gen_tokens")
    score: tuple[str, ...] = ("score", "reward")
    answer: tuple[str, ...] = ("answer",)
    text: tuple[str, ...] = ()


_PLAIN = _Keys(
    problem=("problem", "problem_id", "question_id", "task_id", "doc_id", "id", "idx"),
    correct=("correct", "is_correct", "passed", "exact_match"),
    sample=("sample", "sample_id"),
    answer=("answer", "extracted_answer", "predicted_answer", "pred"),
    text=("text", "completion", "generation", "output", "response", "prediction"),
)
FORMATS: dict[str, _Keys] = {
    "csv": _PLAIN,
    "jsonl": _PLAIN,
    "json": _PLAIN,
    # lm_eval/evaluator.py: doc_id (of its task), doc_hash, resps, filtered_resps, filter, metrics and each of those
    "lm_eval": _Keys(
        ("doc_hash", "doc_id"), ("exact_match", "acc"), answer=("filtered_resps",), text=("resps",)
    ),
    # lcb_runner/benchmarks/code_generation.py, insert_output_evaluation: one object a problem, lists of samples
    "livecodebench": _Keys(("question_id",), ("graded_list",), answer=(), text=("output_list",)),
    # icl_base_evaluator.py: details by number, or a list whose entries hold a list per run
    "opencompass": _Keys(
        problem=("example_abbr", "idx"),
        correct=("correct", "is_correct", "cascade_correct", "label"),
        answer=("pred", "answer_pred"),
        text=("origin_prediction", "prediction", "pred_raw"),
    ),
}
_TRUTH = {"1": True, "true": True, "0": False, "false": False, "1.0": True, "0.0": False}


def read_pass_table(spec: PassTable | str, folder: Path = Path()) -> PassTableRead:
    """Read graded samples: problems in the file's order, what was read in one line.

    Raises KvplanError naming what a file lacks, or the row and what is wrong with it.
    """
    spec = as_pass_table(spec)
    unknown = [name for name in spec.fields if name not in COLUMNS]
    if unknown:
        raise KvplanError(
            f"pass_table.fields: {unknown[0]!r} is no column{did_you_mean(unknown[0], COLUMNS)}; "
            f"there are {', '.join(COLUMNS)}"
        )
    stamps = []
    for path in (folder / name for name in spec.paths):
        try:
            state = path.stat()
            stamps.append((str(path), state.st_mtime_ns, state.st_size))
        except (OSError, ValueError):
            raise KvplanError(f"{str(path)[:200]}: the pass/fail table cannot be read") from None
    return _read(spec.model_dump_json(), tuple(stamps))


@lru_cache(maxsize=4)
def _read(spec_json: str, stamps: tuple[tuple[str, int, int], ...]) -> PassTableRead:
    """Once per file as it is now: every strategy of a comparison asks for it."""
    spec = PassTable.model_validate_json(spec_json)
    found: dict[str, list[_Sample]] = {}
    kinds = []
    for name, *_ in stamps:
        path = Path(name)
        kind, records = _records(path, spec)
        kinds.append(kind)
        seen: set[tuple[str, str]] = set()
        for row in _rows(path, kind, records, spec):
            if row.sample is not None and (row.problem, str(row.sample)) in seen:
                what = f"problem {row.problem[:40]!r} has sample {str(row.sample)[:40]!r} twice"
                raise KvplanError(f"{path}, row {row.number}: {what}")
            seen.add((row.problem, str(row.sample)))
            found.setdefault(row.problem, []).append(_sample(path, row, spec))
    if not found:
        raise KvplanError(f"{stamps[0][0]}: the pass/fail table has no rows")
    every = [sample for samples in found.values() for sample in samples]
    squashed = any(s.score is not None and not 0 <= s.score <= 1 for s in every)
    if any(s.score is None for s in every) and any(s.score is not None for s in every):
        raise KvplanError(f"{stamps[0][0]}: some samples have a score and some have none")
    problems = {problem: _samples(samples, squashed) for problem, samples in found.items()}
    return PassTableRead(problems, _said(spec, kinds, problems, every, squashed))


class _Sample(NamedTuple):
    tokens: int
    correct: bool
    score: float | None
    answer: str | None
    """None = the file does not say."""
    is_estimated: bool


def _samples(samples: Sequence[_Sample], squashed: bool) -> Samples:
    """One problem's, wrong answers numbered from 1 as they come."""
    ids: dict[str, int] = {}
    answers = tuple(
        RIGHT if s.correct else ids.setdefault(s.answer, 1 + len(ids)) if s.answer else None for s in samples
    )
    known = any(s.answer is not None for s in samples)
    scores = tuple(_squashed(s.score) if squashed else s.score for s in samples if s.score is not None)
    return Samples(
        tokens=tuple(s.tokens for s in samples),
        correct=tuple(s.correct for s in samples),
        answers=answers if known else None,
        scores=scores or None,
    )


def _squashed(score: float) -> float:
    """A score of any scale between 0 and 1, in the same order."""
    return 1 / (1 + exp(-min(max(score, -40.0), 40.0)))


def _said(
    spec: PassTable, kinds: list[str], problems: dict[str, Samples], every: list[_Sample], squashed: bool
) -> str:
    sizes = Counter(len(s.tokens) for s in problems.values())
    each = f"{min(sizes)}" if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
    right = sum(s.correct for s in every) / len(every)
    name = spec.paths[0] if len(spec.paths) == 1 else f"{spec.paths[0]} and {len(spec.paths) - 1} more"
    estimated = sum(s.is_estimated for s in every)
    parts = [
        f"pass table {name} ({kinds[0]}): {counted(len(problems), 'problem')}, "
        f"{each} {'sample' if each == '1' else 'samples'} each, {right:.1%} right, "
        f"{sum(s.tokens for s in every) / len(every):,.0f} tokens on average"
    ]
    if estimated:
        characters = f"{spec.characters_per_token:g} characters"
        parts.append(f"tokens of {estimated:,} estimated at {characters} each (assumed)")
    if every[0].score is None:
        parts.append("no scores: the verifier's rates")
    else:
        parts.append("scores of its own" + (", squashed to 0..1" if squashed else ""))
    has_answers = any(s.answers for s in problems.values())
    parts.append("answers of its own" if has_answers else "no answers: wrong ones differ as assumed")
    return "; ".join(parts)


# --- files ------------------------------------------------------------------------------------------------


def _records(path: Path, spec: PassTable) -> tuple[str, list[tuple[int, dict[str, Any]]]]:
    """The format, and each record with its number (a line's, or its place from 1)."""
    text = read_text(path)
    start = text.lstrip()[:1]
    kind = spec.format
    if kind == "csv" or (kind == "auto" and start not in ("{", "[")):
        return "csv", _csv_records(path, text, spec)
    records = _json_records(path, text)
    if kind == "auto":
        kind = _guess(path, records)
    if kind == "opencompass":
        records = _details(path, records)
    return kind, records


def _csv_records(path: Path, text: str, spec: PassTable) -> list[tuple[int, dict[str, Any]]]:
    try:
        rows = csv.DictReader(io.StringIO(text))
        names = set(rows.fieldnames or ())
        missing = {
            c for c in ("problem", "sample", "tokens", "correct") if spec.fields.get(c, c) not in names
        }
        if missing - ({"tokens"} if spec.fields.get("text", "text") in names else set()):
            raise KvplanError(
                f"{path}: no column {', '.join(sorted(missing))}; need problem, sample, tokens, correct"
            )
        return list(enumerate(rows, start=2))
    except csv.Error as error:
        raise KvplanError(f"{path}: the pass/fail table is no CSV ({error})") from None


def _json_records(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    """One JSON value, or one object a line."""
    whole = json_of(text)
    if isinstance(whole, dict):
        return [(1, whole)]
    if isinstance(whole, list):
        found = list(enumerate(whole, start=1))
    else:
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        found = [(number, json_of(line)) for number, line in lines]
    for number, record in found:
        if not isinstance(record, dict):
            raise KvplanError(f"{path}, row {number}: not a JSON object, which a sample is")
    return found


def _guess(path: Path, records: list[tuple[int, dict[str, Any]]]) -> Format:
    first = records[0][1] if records else {}
    if "graded_list" in first:
        return "livecodebench"
    if "resps" in first and "doc_id" in first:
        return "lm_eval"
    if "details" in first or "example_abbr" in first:
        return "opencompass"
    return "jsonl" if path.suffix == ".jsonl" else "json"


def _details(path: Path, records: list[tuple[int, dict[str, Any]]]) -> list[tuple[int, dict[str, Any]]]:
    """OpenCompass keeps its samples under `details`: by number, or in a list."""
    if len(records) != 1 or "details" not in records[0][1]:
        return records
    details = records[0][1]["details"]
    if isinstance(details, dict):
        found = [{"idx": key, **one} for key, one in details.items() if isinstance(one, dict)]
    elif isinstance(details, list):
        found = [{"idx": place, **one} for place, one in enumerate(details) if isinstance(one, dict)]
    else:
        raise KvplanError(f"{path}: `details` is neither a list nor an object")
    if not found:
        raise KvplanError(f"{path}: `details` has no samples")
    return list(enumerate(found, start=1))


# --- rows -------------------------------------------------------------------------------------------------


def _rows(
    path: Path, kind: str, records: list[tuple[int, dict[str, Any]]], spec: PassTable
) -> Iterator[_Row]:
    """One row per sample: a record holds one, or lists of them."""
    keys = FORMATS[kind]
    chosen = spec.filter or next((r["filter"] for _, r in records if isinstance(r.get("filter"), str)), None)
    if spec.filter and not any(r.get("filter") == spec.filter for _, r in records):
        there = sorted({str(r["filter"]) for _, r in records if "filter" in r})
        raise KvplanError(
            f"{path}: no rows of filter {spec.filter!r}; there are {', '.join(there) or 'none'}"
        )
    for number, record in records:
        if kind == "lm_eval" and chosen is not None and record.get("filter", chosen) != chosen:
            continue
        if kind == "lm_eval" and "correct" not in spec.fields:
            named = record.get("metrics")
            first = named[:1] if isinstance(named, list) else []
            keys = FORMATS[kind]._replace(correct=(*(str(m) for m in first), *FORMATS[kind].correct))
        if isinstance(record.get("predictions"), list):  # OpenCompass' G-Pass@k: an object per run
            runs = [{**record, **one} for one in record["predictions"] if isinstance(one, dict)]
        else:
            runs = [record]
        for one in runs:
            yield from _of_record(path, number, one, keys, spec)


def _of_record(
    path: Path, number: int, record: dict[str, Any], keys: _Keys, spec: PassTable
) -> Iterator[_Row]:
    values = {name: _find(record, spec.fields.get(name), getattr(keys, name)) for name in _Keys._fields}
    for name in ("problem", "correct"):
        if values[name] is None:
            asked = spec.fields.get(name) or " or ".join(getattr(keys, name))
            raise KvplanError(
                f"{path}, row {number}: no {asked} (pass_table.fields names another key for {name})"
            )
    many = isinstance(values["correct"], list)
    count = len(values["correct"]) if many else 1
    own = [values[name] for name in ("sample", "correct", "tokens", "score", "answer", "text")]
    short = next((v for v in own if many and isinstance(v, list) and len(v) != count), None)
    if short is not None:  # whose is each? a file cut off, or two harnesses' lists
        raise KvplanError(
            f"{path}, row {number}: {count} samples graded, and a list beside them has {len(short)}"
        )
    for i in range(count):
        each = (_one(value, i, count if many else None) for value in own)
        yield _Row(number, str(values["problem"]), *each)


def _find(record: dict[str, Any], told: str | None, known: tuple[str, ...]) -> Any:
    """The value under the key that was told, or the first known one that there is."""
    if told is None:
        return next((record[key] for key in known if record.get(key) is not None), None)
    value: Any = record.get(told)
    if value is None and "." in told:
        value = record
        for part in told.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    return value


def _one(value: Any, place: int, count: int | None) -> Any:
    """A sample's own entry of a list of them; a harness's list of one is that one."""
    if count is not None and isinstance(value, list) and len(value) == count:
        value = value[place]
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value


def _sample(path: Path, row: _Row, spec: PassTable) -> _Sample:
    truth = _TRUTH.get(str(row.correct).strip().lower())
    counted = str(row.tokens).strip() if row.tokens is not None else ""
    estimated = not counted and isinstance(row.text, str)
    if estimated:
        counted = str(max(1, round(len(row.text) / spec.characters_per_token)))
    whole = re.fullmatch(r"([0-9]{1,12})(\.0*)?", counted)  # 12.0 is what tables of numbers write
    count = int(whole[1]) if whole else 0
    where = f"{path}, line {row.number}" if path.suffix == ".csv" else f"{path}, row {row.number}"
    if not counted and truth is not None:
        raise KvplanError(f"{where}: neither tokens nor a text to count; pass_table.fields names the key")
    if truth is None or not 1 <= count <= LONGEST:
        raise KvplanError(
            f"{where}: tokens must be 1 to {LONGEST:,} and correct 0 or 1,"
            f" not {counted[:40]!r} and {str(row.correct)[:40]!r}"
        )
    answer = None if row.answer is None else str(row.answer).strip()[:1000]
    return _Sample(count, truth, _score(where, row.score), answer, estimated)


def _score(where: str, value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError):
        score = float("nan")
    if isinstance(value, bool) or not isfinite(score):
        raise KvplanError(f"{where}: score must be a number, not {str(value)[:40]!r}")
    return score
