"""A plan's question and answer: what was asked, names looked up, what follows, and how it reads. `forward` fills them.

A `Question` can be asked again with one thing changed, which is how `inverse` finds what would fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import kvplan
from kvplan.engines.flags import EngineArgs, EngineVersion, EntryPoint, ResolvedArgs, beyond_known
from kvplan.engines.kernel_flags import OVER_NVLINK
from kvplan.engines.nodes import commands_line, find_spread, num_machines
from kvplan.engines.pooling import find_pooling
from kvplan.engines.rank_weights import weights_in_host, weights_of_stages
from kvplan.engines.stages import PipelineStage, stages_of
from kvplan.engines.weight_offload import weight_offload
from kvplan.ground.errors import DoesNotFit
from kvplan.ground.frames import make_frame
from kvplan.ground.gpu import GpuSpec
from kvplan.ground.limits import Limit
from kvplan.ground.pictures import Pictures
from kvplan.ground.tables import Part, Table, counted, text_of
from kvplan.ground.units import GiB, cdiv, gib
from kvplan.memory.budget import Budget, unloaded_towers
from kvplan.memory.demand import Demand, trace_blocks
from kvplan.memory.kv.checks import offloads
from kvplan.memory.layout import Layout
from kvplan.memory.report import SCHEMA_VERSION, kib, log_lines, memory_html, memory_table
from kvplan.memory.serve_command import shell_command, with_length
from kvplan.models.spec import ModelSpec
from kvplan.profiles.memory_profile import MemoryProfile

if TYPE_CHECKING:
    from kvplan.memory.offloading import OffloadTier

FAR = "No change of a flag holds it on these cards; `kvplan plan` ranks cards, flags and copies for a load."
"""Said where only other cards, more of them or nothing known would do."""


class Span(NamedTuple):
    """A count with the range that the memory overheads leave open."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the engine would not start."""

    reason: str
    limit: Limit
    needed_bytes: int
    available_bytes: int
    max_model_len: int
    """Longest context that would start; 0 if none."""


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked, names looked up; the forward formula's arguments, so that it can be asked again, changed."""

    model: ModelSpec
    gpu: GpuSpec
    args: EngineArgs
    engine: EngineVersion
    demand: Demand
    entry_point: EntryPoint = "serve"
    colocate: tuple[tuple[str, ModelSpec], ...] = ()
    profile: MemoryProfile | None = None

    @property
    def draft(self) -> ModelSpec | None:
        """The model that drafts, where one does."""
        return dict(self.colocate).get("draft")


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """The answer: memory of the tightest GPU, the engine's own figures, and what they mean for the asked load."""

    plot: ClassVar[Pictures] = Pictures()
    """Pictures of it, Altair charts: `dir(result.plot)` names them."""

    question: Question
    args: ResolvedArgs
    """Flags as the engine would resolve them."""
    budget: Budget
    """Memory of a GPU of the pipeline stage that decides how many blocks there are; of the fullest, where flags do."""
    layout: Layout | None
    """None where the engine refuses."""
    shape: Layout
    """Groups, pages and block size whatever the pool; its number of blocks means nothing on a refusal."""
    refusal: Refusal | None
    cache_tokens: Span
    """`GPU KV cache size`, as the engine prints it."""
    max_concurrency: Span
    """Requests of max_model_len tokens at once, as the engine prints it."""
    trace_tokens: int
    """Tokens of one full-grown trace of the asked load."""
    traces: Span
    """Traces of the asked load that KV memory holds at once, over all replicas."""

    @property
    def offload(self) -> OffloadTier | None:
        """The tier of KV in host memory, of one replica; None where none is asked for."""
        question = self.question
        if not offloads(question.args, question.engine):
            return None
        from kvplan.memory.offloading import find_tier  # with step times: a cold start stays short

        return find_tier(
            question.model, question.gpu, self.args, question.engine, self.shape, self.trace_tokens
        )

    @property
    def stage(self) -> PipelineStage:
        """The pipeline stage that decides."""
        return stages_of(self.question.model, self.args)[self.shape.stage]

    @property
    def max_model_len(self) -> int:
        """The context the engine serves; with -1 the one it settles on."""
        if self.layout:
            return self.layout.max_model_len
        asked = self.args.max_model_len
        return asked if asked > 0 else self.question.model.default_max_model_len

    @property
    def price_per_hour(self) -> float:
        """US dollars an hour for all its GPUs."""
        return self.question.gpu.price_per_hour * self.args.num_gpus

    @property
    def max_num_seqs(self) -> int:
        """Sequences that the flags let run at once, over all replicas."""
        return self.args.max_num_active_reqs * self.args.data_parallel_size

    @property
    def num_traces(self) -> int:
        """Traces that run at once: KV memory and max_num_seqs both hold them."""
        return self.at_once(self.traces.value)

    @property
    def num_traces_range(self) -> tuple[int, int]:
        """`num_traces` at both ends of the overheads' range."""
        return self.at_once(self.traces.low), self.at_once(self.traces.high)

    def at_once(self, in_memory: float) -> int:
        """Of so many traces that memory holds, those that the scheduler runs at once."""
        return min(int(in_memory), self.max_num_seqs)

    @property
    def fits(self) -> bool:
        """Whether the engine starts and the asked traces live at once."""
        return self.serves and self.num_traces >= self.question.demand.num_traces

    @property
    def serves(self) -> bool:
        """Whether the engine starts and takes the asked traces, be it in waves."""
        return self.refusal is None and self.too_long is None

    @property
    def fits_for_sure(self) -> bool:
        """Whether it fits at the worst end of the overheads' range too."""
        return self.fits and min(self.traces.low, self.max_num_seqs) >= self.question.demand.num_traces

    @property
    def too_long(self) -> str | None:
        """Why a trace of the asked lengths is never served, or None."""
        if self.refusal or self.trace_tokens <= self.max_model_len:
            return None
        return f"a trace of {self.trace_tokens:,} tokens exceeds max_model_len {self.max_model_len:,}"

    @property
    def limited_by(self) -> Limit:
        """What gives out first."""
        if self.refusal:
            return self.refusal.limit
        return Limit.KV_BLOCKS if self.traces.value <= self.max_num_seqs else Limit.MAX_NUM_SEQS

    def check(self) -> Plan:
        """Return itself, or raise DoesNotFit with needed, available and the longest that fits."""
        if self.reason is not None:
            raise DoesNotFit(self.reason)
        return self

    @property
    def shortfall(self) -> str:
        """The missing concurrency in one sentence."""
        wanted = self.question.demand.num_traces
        return (
            f"{counted(wanted, 'trace')} of {self.trace_tokens:,} tokens asked, {self.num_traces:,} "
            f"{'fits' if self.num_traces == 1 else 'fit'} at once (limited by {self.limited_by})"
        )

    @property
    def reason(self) -> str | None:
        """Why it does not fit, or None."""
        if self.refusal:
            return self.refusal.reason
        return None if self.fits else self.too_long or self.shortfall

    @property
    def bytes_per_token(self) -> int:
        """KV bytes a token adds on one GPU while every attention layer still keeps it; states left out."""
        return self._bytes_per_token(within_windows=True)

    @property
    def bytes_per_token_beyond_windows(self) -> int:
        """KV bytes a token goes on to hold on one GPU once windows have left it behind."""
        return self._bytes_per_token(within_windows=False)

    def _bytes_per_token(self, *, within_windows: bool) -> int:
        kept = [g for g in self.shape.groups if g.kind.is_growing or (within_windows and g.kind.is_windowed)]
        return sum(group.bytes_per_block // group.block_tokens for group in kept)

    def _kv_of_a_token(self) -> str:
        kept, windows = (
            self.bytes_per_token_beyond_windows,
            self.bytes_per_token - self.bytes_per_token_beyond_windows,
        )
        if not kept or not windows:
            return f"{kib(kept + windows)} KiB per token"
        return f"{kib(kept)} KiB per token, {kib(windows)} more within windows"

    @property
    def serve_command(self) -> str:
        """The command that starts this plan, serving no longer a context than the stated lengths need."""
        question = self.question
        args = question.args if self.too_long else with_length(question.args, question.demand)
        model, engine = question.model, question.engine.engine
        return shell_command(model, args, engine, question.draft, experts=model.is_moe)

    def to_dict(self, options: Sequence[Option] = ()) -> dict[str, object]:
        """The document of `kvplan estimate --json`: the same keys whatever the answer, nulls for what is not known."""
        rows = self.budget.rows
        refusal = self.refusal
        return {
            "schema_version": SCHEMA_VERSION,
            "kvplan_version": kvplan.__version__,
            "inputs": self._inputs(),
            "fits": self.fits,
            "fits_for_sure": self.fits_for_sure,
            "limited_by": str(self.limited_by),
            "reason": self.reason,
            "longest_max_model_len": refusal.max_model_len if refusal else self.max_model_len,
            "memory": {
                "total_bytes": self.budget.total.size.value,
                "budget_bytes": self.budget.budget_bytes,
                **{f"{row.name}_bytes": row.size.value for row in rows},
            },
            "memory_range": {f"{row.name}_bytes": [row.size.low, row.size.high] for row in rows},
            "kv": self._kv(),
            "kv_range": {
                "cache_tokens": list(self.cache_tokens[1:]),
                "max_concurrency": list(self.max_concurrency[1:]),
            },
            "traces": {
                "asked": self.question.demand.num_traces,
                "at_once": self.num_traces,
                "in_kv_memory": int(self.traces.value),
                "in_kv_memory_range": list(self.traces[1:]),
                "tokens_each": self.trace_tokens,
            },
            "sources": {f"{row.name}_bytes": row.source for row in (self.budget.total, *rows)}
            | {
                "model": self.question.model.source,
                "price_per_hour": self.question.gpu.price_source,
            },
            "what_would_fit": [option.to_dict() for option in options],
            "weights_in_host_bytes": self.weights_in_host_bytes,
            "serve_command": self.serve_command if self.serves else None,
        }

    def _inputs(self) -> dict[str, object]:
        question = self.question
        return {
            "model": question.model.name,
            "planned_as": question.model.planned_as or None,
            "assumed": question.model.assumed or None,
            "gpu": question.gpu.name,
            "engine": str(question.engine),
            "entry_point": question.entry_point,
            "num_gpus": self.args.num_gpus,
            "num_machines": num_machines(self.args),
            "price_per_hour": self.price_per_hour,
            "colocate": {role: model.name for role, model in question.colocate},
            **question.demand.model_dump(),
            **self.args.model_dump(mode="json"),
            "max_model_len": self.max_model_len,
            "kv_cache_dtype": self.shape.kv_cache_dtype,
            "block_size": self.shape.block_size,
        }

    def _kv(self) -> dict[str, object]:
        """The engine's own figures; on a refusal those of the pool that there is."""
        shape, started = self.shape, self.layout is not None
        blocks = trace_blocks(shape, self.args, self.trace_tokens, 0, 1)
        return {
            "bytes_per_token": self.bytes_per_token,
            "bytes_per_token_beyond_windows": self.bytes_per_token_beyond_windows,
            "bytes_per_sequence": blocks.alone * shape.bytes_per_block,
            "block_size": shape.block_size,
            "bytes_per_block": shape.bytes_per_block,
            "num_gpu_blocks": shape.num_blocks,
            "cache_tokens": self.cache_tokens.value if started else shape.kv_cache_size_tokens,
            "max_concurrency": self.max_concurrency.value if started else shape.max_concurrency,
            "blocks_per_request": shape.blocks_per_request,
            "offload": tier.to_dict() if (tier := self.offload) else None,
        }

    def parts(self, options: Sequence[Option] = ()) -> list[Part]:
        """The answer in the order an engine's log and then its user would tell it."""
        assumed = self.question.model.assumed
        parts: list[Part] = (
            [f"Assumed: {self.question.model.architecture} is {assumed}.", ""] if assumed else []
        )
        parts += [memory_table(self.budget, self.args.num_gpus, self._kv_of_a_token()), "", *self._headline()]
        if options:
            changes = tuple((f"  {option.change}", option.effect) for option in options)
            parts += ["", "What would fit:", Table(("", ""), changes)]
        if self.is_far(options):
            parts += ["", FAR]
        if self.serves:
            parts += ["", self.serve_command]
        return parts

    def text(self, options: Sequence[Option] = ()) -> str:
        """The same as text."""
        return text_of(self.parts(options))

    def is_far(self, options: Sequence[Option]) -> bool:
        """Whether none of the changes that would fit leaves the cards as they are."""
        cards = (self.question.gpu, self.args.num_gpus)
        kept = [(o.plan.question.gpu, o.plan.args.num_gpus) == cards for o in options]
        return not self.fits and not any(kept)

    def _headline(self) -> list[str]:
        """What the engine would log of its pool and what that means for the asked traces, or why it does not start."""
        engine, refusal, model = self.question.engine.engine, self.refusal, self.question.model
        stands_in = [f"{model.name} is planned as {model.planned_as}."] if model.planned_as else []
        if self.args.runner == "pooling" and (pooling := find_pooling(model, self.args)):
            whole = "" if pooling.splits_prompts else ": prompts run whole, none are cached"
            stands_in.append(f"It {pooling}{whole}; a trace is a prompt, gone once it is read.")
        stands_in += self._machines_lines()
        if newest := beyond_known(self.question.engine):
            stands_in.append(
                f"{self.question.engine} is not known: planned by the rules of {newest}, the newest known."
            )
        for tower in unloaded_towers(model, self.args, self.question.engine):
            stands_in.append(f"Its weights hold {tower}, which vLLM leaves out: its share is not known.")
        if refusal:
            starts = engine == "sglang" and refusal.max_model_len > 0
            return [*stands_in, f"{'Falls short' if starts else 'Does not start'}: {refusal.reason}."]
        tokens, pool = int(self.cache_tokens.value), self.budget.kv.size.value
        logged = log_lines(engine, tokens, self.max_model_len, pool, self.max_concurrency.value)
        tier = self.offload
        offloaded = tier.lines(self.trace_tokens, self.cache_tokens.value) if tier else []
        return [*stands_in, *logged, self._traces_line(), *self._host_line(), *offloaded]

    def _machines_lines(self) -> list[str]:
        """Which exchanges cross machines, each one's share of what lies in host memory, what starts the others."""
        spread, others = find_spread(self.args, moe=self.question.model.is_moe), commands_line(self.args)
        lines = []
        if spread.num_machines > 1:
            held = self.weights_in_host_bytes + int((self.args.kv_offloading_size or 0.0) * GiB) * (
                self.args.data_parallel_size
            )
            each = held * spread.gpus_each // self.args.num_gpus
            lines.append(f"{spread}{f' Host memory of each: {gib(each):,.2f} GiB.' if held else ''}")
        if spread.exchanges_cross and self.args.all2all_backend in OVER_NVLINK:
            lines.append(
                f"--all2all-backend {self.args.all2all_backend} needs NVLink between them, as racks have it."
            )
        if others and self.question.engine.engine == "vllm":
            lines.append(others)
        return lines

    @property
    def weights_in_host_bytes(self) -> int:
        """Host memory that weights take, those of all GPUs together."""
        return weights_in_host(self.question.model, self.args) if weight_offload(self.args) else 0

    def _host_line(self) -> list[str]:
        """What weights in host memory need there, and how long they take to come."""
        offload = weight_offload(self.args)
        if offload is None:
            return []
        stages = weights_of_stages(self.question.model, self.args)
        if not (most := max(rank.host.host_bytes for rank in stages)):
            return [
                "No weights lie in host memory: vLLM offloads none of this model's, or none of such names."
            ]
        from kvplan.profiles.host_links import find_host_link  # reads YAML: a cold start stays short

        link = find_host_link(self.question.gpu)
        how = "read" if offload.backend == "uva" else "copied"
        return [
            f"Host memory: {gib(self.weights_in_host_bytes):,.2f} GiB of weights, pinned, {how} in every step:"
            f" {link.seconds(most) * 1e3:,.0f} ms for all of a GPU's ({link.name}, {link.bytes_per_s / 1e9:g} GB/s)."
        ]

    def _traces_line(self) -> str:
        """What the engine's figures mean for traces of the expected lengths."""
        if self.too_long:
            return f"Never served: {self.too_long}."
        low, high = self.num_traces_range
        spread = f" ({low:,}-{high:,})" if low != high else ""
        held = f"{self.num_traces:,} trace{'s' if self.num_traces != 1 else ''} at once{spread}"
        dp = self.args.data_parallel_size
        held += f" over {dp} replicas" if dp > 1 else ""
        doubt = (
            "" if self.fits_for_sure or not self.fits else " Not at the worst end of the overheads' range."
        )
        return f"At the {self._lengths()}: {held}, limited by {self.limited_by}{self._waves()}.{doubt}"

    def _lengths(self) -> str:
        demand = self.question.demand
        if not demand.is_stated:
            return f"full {self.trace_tokens:,} tokens"
        shared = ", prompt shared" if demand.num_samples > 1 and self.args.enable_prefix_caching else ""
        if demand.input_len and demand.output_len:
            return f"expected {demand.input_len:,} + {demand.output_len:,} tokens{shared}"
        return f"expected {self.trace_tokens:,} tokens{shared}"

    def _waves(self) -> str:
        asked, held = self.question.demand.num_traces, self.num_traces
        if asked <= 1 or not held:
            return ""
        if asked <= held:
            return f", so all {asked:,} run together"
        return f", so {asked:,} run in {cdiv(asked, held)} waves or preempt"

    def to_frame(self) -> Any:
        """The memory rows as a pandas DataFrame: use, gib, low, high, source."""
        rows = (self.budget.total, *self.budget.rows)
        facts = [(row.name, *(gib(size) for size in row.size), row.source) for row in rows]
        return make_frame(facts, columns=["use", "gib", "low", "high", "source"])

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        """The question and the headline; `print(plan)` has the memory table."""
        question = self.question
        cards = f"{self.args.num_gpus} x {question.gpu.name}"
        verdict = "fits" if self.fits else "does not fit"
        return (
            "\n  ".join(
                [
                    f"<Plan of {question.model.name} on {cards}, {question.engine}: {verdict}",
                    *self._headline(),
                ]
            )
            + ">"
        )

    def _repr_html_(self) -> str:
        """The memory table and the headline, for notebooks."""
        return memory_html(self.budget, self.args.num_gpus, self._kv_of_a_token(), self._headline())


@dataclass(frozen=True, slots=True)
class Option:
    """One change after which everything asked fits."""

    change: str
    """Flags to add or to change."""
    effect: str
    """What then holds."""
    rank: int
    plan: Plan
    """The forward formula's answer to the changed question."""

    def to_dict(self) -> dict[str, object]:
        """As in `what_would_fit` of the JSON document."""
        return {
            "change": self.change,
            "effect": self.effect,
            "fits": self.plan.fits,
            "traces_at_once": self.plan.num_traces,
            "max_model_len": self.plan.max_model_len,
            "gpu": self.plan.question.gpu.name,
            "num_gpus": self.plan.args.num_gpus,
            "price_per_hour": round(self.plan.price_per_hour, 4),
        }
