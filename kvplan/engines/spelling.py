"""How each engine spells the flags of `EngineArgs`: one table, written to command lines and read from logs.

A `Word` says a field in one engine's way. Command lines of vLLM and SGLang dash it, logs and TensorRT-LLM do not.
Knows words and values, not lines: `memory.serve_command` writes them, `observed.log_flags` finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kvplan.engines.flags import EngineArgs

Spoken = Mapping[str, Any]
"""Word -> value."""
SILENT = object()
"""Said by leaving the word out: it is what the engine does anyway."""


def _count(told: Any) -> int:
    """A number above 0 as it is, anything else as 0: logs hold what they like."""
    return told if isinstance(told, int) and told > 0 else 0


def _same(value: Any, _: object) -> Any:
    return value


class Word(NamedTuple):
    """One field in one engine's words."""

    field: str
    word: str
    """Dots part the sections of a file."""
    also: tuple[str, ...] = ()
    """Older and shorter spellings, read only."""
    in_file: bool = False
    """Taken from a file only (trtllm-serve --extra_llm_api_options)."""
    write: Callable[[Any, EngineArgs], Any] = _same
    """Value and all flags -> what the word is given, or SILENT."""
    read: Callable[[Any, Spoken], Any] = _same
    """What the word is given, and all words -> value; None where it tells nothing."""


def _switch_off(field: str, word: str) -> Word:
    """A switch that turns off what vLLM's turns on."""
    return Word(
        field,
        word,
        write=lambda value, _: SILENT if value else True,
        read=lambda told, _: False if told is True else None,
    )


def _tokens(field: str, word: str, page_word: str, page: int, in_file: bool = False) -> Word:
    """A pool counted in tokens where vLLM counts blocks."""
    return Word(
        field,
        word,
        in_file=in_file,
        write=lambda blocks, args: blocks * (args.block_size or page),
        read=lambda tokens, spoken: _count(tokens) // (_count(spoken.get(page_word)) or page) or None,
    )


def _expert_ranks(word: str) -> Word:
    return Word(
        "enable_expert_parallel",
        word,
        write=lambda _, args: args.tensor_parallel_size,
        read=lambda ranks, _: True if _count(ranks) > 1 else None,
    )


_ALSO = {
    "tensor_parallel_size": ("tp",),
    "pipeline_parallel_size": ("pp",),
    "data_parallel_size": ("dp",),
    "max_model_len": ("max_seq_len",),
    "enable_chunked_prefill": ("chunked_prefill_enabled",),
    "num_speculative_tokens": ("num_spec_tokens",),
    "kv_cache_memory_bytes": ("kv_cache_memory",),
}
WORDS: dict[str, tuple[Word, ...]] = {
    "vllm": tuple(Word(name, name, _ALSO.get(name, ())) for name in EngineArgs.model_fields if name != "env"),
    "sglang": (
        Word("tensor_parallel_size", "tp_size", ("tp", "tensor_parallel_size")),
        Word("pipeline_parallel_size", "pp_size"),
        Word("data_parallel_size", "dp_size"),
        Word("max_model_len", "context_length"),
        Word("max_num_seqs", "max_running_requests"),
        Word("max_num_batched_tokens", "chunked_prefill_size", read=lambda told, _: _count(told) or None),
        Word("gpu_memory_utilization", "mem_fraction_static"),
        _tokens("num_gpu_blocks_override", "max_total_tokens", "page_size", 1),
        Word("block_size", "page_size"),
        Word("kv_cache_dtype", "kv_cache_dtype", write=lambda told, _: {"fp8": "fp8_e4m3"}.get(told, told)),
        Word("mamba_ssm_cache_dtype", "mamba_ssm_dtype"),
        Word("quantization", "quantization"),
        Word("dtype", "dtype"),
        Word("enforce_eager", "disable_cuda_graph", write=lambda told, _: told or SILENT),
        _switch_off("enable_prefix_caching", "disable_radix_cache"),
        Word(
            "enable_chunked_prefill",
            "chunked_prefill_size",
            write=lambda told, _: SILENT if told else -1,
            read=lambda told, _: False if told == -1 else None,
        ),
        _switch_off("async_scheduling", "disable_overlap_schedule"),
        _expert_ranks("ep_size"),
        Word("nnodes", "nnodes"),
        Word("node_rank", "node_rank"),
        Word(
            "runner",
            "is_embedding",
            write=lambda told, _: True if told == "pooling" else SILENT,
            read=lambda told, _: "pooling" if told is True else None,
        ),
    ),
    "tensorrt-llm": (
        Word("tensor_parallel_size", "tp_size"),
        Word("pipeline_parallel_size", "pp_size"),
        _expert_ranks("ep_size"),
        Word("max_model_len", "max_seq_len"),
        Word("max_num_seqs", "max_batch_size"),
        Word("max_num_batched_tokens", "max_num_tokens"),
        Word(
            "gpu_memory_utilization",
            "kv_cache_free_gpu_memory_fraction",
            ("free_gpu_memory_fraction", "kv_cache_free_gpu_mem_fraction"),
        ),
        Word("block_size", "kv_cache_config.tokens_per_block", ("tokens_per_block",), in_file=True),
        Word("kv_cache_dtype", "kv_cache_config.dtype", also=("kv_cache_dtype",), in_file=True),
        _tokens(
            "num_gpu_blocks_override",
            "kv_cache_config.max_tokens",
            "kv_cache_config.tokens_per_block",
            32,
            True,
        ),
        Word("kv_cache_memory_bytes", "kv_cache_config.max_gpu_total_bytes", in_file=True),
        Word("enable_prefix_caching", "kv_cache_config.enable_block_reuse", in_file=True),
        Word("enable_chunked_prefill", "enable_chunked_prefill", in_file=True),
        Word(
            "enforce_eager",
            "cuda_graph_config",
            in_file=True,
            write=lambda told, _: None if told else SILENT,
            read=lambda told, _: True if told is None else None,
        ),
        Word(
            "async_scheduling",
            "disable_overlap_scheduler",
            in_file=True,
            write=lambda told, _: not told,
            read=lambda told, _: not told,
        ),
    ),
}


def spell(args: EngineArgs, engine: str, *, in_file: bool = False) -> dict[str, Any]:
    """What differs from the defaults in the engine's words: on its command line, or in its file.

    >>> spell(EngineArgs(tensor_parallel_size=2, enable_prefix_caching=False), "sglang")
    {'tp_size': 2, 'disable_radix_cache': True}
    """
    spoken = {}
    words = {word.field: word for word in WORDS[engine] if word.in_file == in_file}
    for field, value in args.model_dump(exclude_defaults=True).items():
        said = words[field].write(value, args) if field in words else SILENT
        if said is not SILENT:
            spoken[words[field].word] = said
    return spoken


def understand(spoken: Spoken, engine: str) -> dict[str, Any]:
    """Fields of `EngineArgs` that an engine's words tell; the first of two words for one field wins.

    >>> understand({"tp": 2, "disable_radix_cache": True, "chunked_prefill_size": 4096}, "sglang")
    {'tensor_parallel_size': 2, 'enable_prefix_caching': False, 'max_num_batched_tokens': 4096}
    """
    found: dict[str, Any] = {}
    for said, value in spoken.items():
        for word in WORDS[engine]:
            if said in (word.word, *word.also) and (told := word.read(value, spoken)) is not None:
                found.setdefault(word.field, told)
    return found


def logged_words(engine: str) -> list[str]:
    """Every spelling that a log of the engine may hold; those of files are not told from others by a line."""
    return [w for word in WORDS[engine] for w in (*word.also, *(() if word.in_file else (word.word,)))]


def unspoken(args: EngineArgs, engine: str) -> list[str]:
    """Changed flags that the engine has no word for, as vLLM spells them."""
    known = {word.field for word in WORDS[engine]}
    changed = args.model_dump(exclude_defaults=True)
    return ["--" + field.replace("_", "-") for field in changed if field not in known]
