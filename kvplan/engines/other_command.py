"""Commands of SGLang and TensorRT-LLM: their flags by their words, what has none, files of flags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from kvplan.engines.flags import as_count
from kvplan.engines.other_parsers import OtherFlag, other_flag
from kvplan.engines.pasted.expansion import UNSTATED
from kvplan.engines.pasted.started import Started
from kvplan.engines.spelling import WORDS, understand
from kvplan.engines.told import Command, check_model, check_stated, engine_args, left_open, spare_words
from kvplan.engines.vllm_parser import flags_of_file, object_of, plain, split_flags, with_config_file
from kvplan.ground.errors import KvplanError

DEGREES = {
    spelling: f"{short}_size"
    for short, whole in (("tp", "tensor"), ("pp", "pipeline"), ("dp", "data"), ("ep", "expert"))
    for spelling in (short, f"{whole}_parallel_size")
}
"""Other spellings of parallel sizes."""


CHANGES_OTHERS = re.compile(
    r"(enable_|disable_|max_|prefill_|decode_)?(cpu_offload|offload|speculative|spec_|lora|loras|eplb|ep_|elastic_ep|moe_"
    r"|two_batch|tbo_|single_batch|cuda_graph|torch_|torchao|queued|hierarchical|hicache|lmcache|hybrid_|swa_|mamba_"
    r"|attention_backend|mixed_chunk|dp_lm_head|prefill|chunked_context|multimodal|mm_|beam_width)"
    r"|init_expert|stream_|schedule|sampling_backend|fp8_gemm|fp4_gemm|disaggregation|kv_transfer|num_continuous"
    r"|radix_eviction|language_only|encoder_only|dllm|nnodes|quantize_|modelopt|kv_cache_free|guaranteed_no_evict"
    r"|batching_type|gpus_per_node|cluster_size|(attn|dcp|dwdp)_\w*size|moe_cluster|context_parallel|pp_(async|max)|kt_"
    r"|num_reserved_decode|enable_(hisparse|memory_saver|weights_cpu|page_major|unified_memory|paged_experts|int8_mamba"
    r"|priority_sched|dynamic_chunk|pdmux|fp32_lm|multi_layer|mis|kv_cache_sharding|draft_weights|linear_replay|flexkv"
    r"|deterministic|attention_dp|cp_decode|attn_tp|shared_experts|dense_mlp|megamoe|waterfill|layernorm_sp|tf32|symm"
    r"|aiter|flashinfer|fused|mscclpp|nvidia_mega|lean|dsa|deepseek_v4|w4a4|encoder_swa|decoder_swa|scattered|watermark)"
    r"|paged_experts|ple_offload|shared_experts|retraction|min_free_slots|watermark|deepep|dsa_|dsv4_|linear_attn|triton_"
    r"|flashinfer_|disable_(shared|custom_all|decode_cuda|chunked_prefix|aiter|flashinfer|attn_tp)|bf16_gemm|c128_|uno_"
    r"|rl_(on|quant)|language_model_only|limit_mm|int8_mamba|qsa_|hisparse|sm_group|pdmux|decoupled|tokenizer_worker"
    r"|detokenizer_worker|model_impl|scheduler_config|sparse_attention|attention_dp|batch_wait|allreduce|mlx|enforce_"
    r"|experts_shared|monokernel|numa|sleep_on_idle|boundary|modelexpress|radix_cache|startup_weight"
)
"""Other engines' flags that change memory, scheduling or time and are not planned, by what their names begin with."""
SPREADS_EXPERTS = ("deepep", "mooncake", "flashinfer")
"""Exchanges with which SGLang spreads experts over all ranks, whatever --ep-size says (`server_args.py`)."""


class _Spoken(NamedTuple):
    """What a command says, by whether it acts."""

    model: str
    fields: dict[str, Any]
    """Words that act -> their values, a file's over the line's."""
    overrides: dict[str, Any]
    """Of the model's config."""
    unaffected: list[str]
    unplanned: list[str]
    open: list[str]
    """Words, not of a flag, that are not stated."""
    notes: list[str]


def read_other(start: Started, environment: dict[str, str], files: Mapping[str, str]) -> Command:
    """SGLang's and TensorRT-LLM's flags by their words; what has none is listed as without effect."""
    told = _apart(start, files)
    check_model(told.model, start)
    return Command(
        engine=start.engine,
        model=told.model,
        args=engine_args(understand(told.fields, start.engine)),
        hf_overrides=told.overrides,
        no_effect=tuple(dict.fromkeys(told.unaffected)),
        not_planned=tuple(dict.fromkeys(told.unplanned)),
        environment=environment,
        notes=(*told.notes, *left_open(told.open)),
    )


def _apart(start: Started, files: Mapping[str, str]) -> _Spoken:
    engine, model = start.engine, ""
    spoken, in_file, overrides = dict[str, Any](), dict[str, Any](), dict[str, Any]()
    unaffected, unplanned, unknown = list[str](), list[str](), list[str]()
    spreads = False
    known = {w for word in WORDS[engine] for w in (word.word, *word.also)}
    known |= {"enable_dp_attention", "attn_dp_size"}
    words = with_config_file(start.words, files) if engine == "sglang" else start.words
    for i, (name, values) in enumerate(split_flags(words)):
        if i == 0:
            model, spare = (values[0], values[1:]) if values else ("", [])
            unknown += spare_words(spare, model)
            continue
        try:
            flag = other_flag(engine, name)
        except KvplanError:
            if not start.version:
                raise
            unplanned.append(f"--{name} (no flag of the parser that is known)")
            continue
        value, spare = _other_value(flag, values)
        if spare and not model and UNSTATED not in spare[0]:
            model, spare = spare[0], spare[1:]
        unknown += spare_words(spare, model)
        key = flag.name.replace("-", "_")
        key = DEGREES.get(key, key)
        if key in ("model_path", "model"):
            model = str(value)
        elif key == "config":
            in_file = _flattened(flags_of_file(str(value), files), known)
            for word in in_file.keys() - known:
                (unplanned if CHANGES_OTHERS.match(word) else unaffected).append(f"--{flag.name} {word}")
        elif key == "json_model_override_args":
            overrides = object_of(value, flag.name)
        elif key in known:
            check_stated(f"--{flag.name}", value, start)
            spoken[key] = _number(value) if isinstance(value, str) else value
        else:
            (unplanned if CHANGES_OTHERS.match(key) else unaffected).append(f"--{flag.name}")
            if key == "moe_a2a_backend" and value in SPREADS_EXPERTS:
                spreads = True
    if spreads:
        spoken["ep_size"] = spoken.get("tp_size", 1)
    notes = _expert_parts(spoken) + (_data_parallel(spoken) if engine == "sglang" else [])
    return _Spoken(model, spoken | in_file, overrides, unaffected, unplanned, unknown, notes)


def _flattened(told: Mapping[str, Any], known: set[str], section: str = "") -> dict[str, Any]:
    """A file's keys as `WORDS` has them: with their section, or of the KV cache without it."""
    found: dict[str, Any] = {}
    for key, value in told.items():
        name = f"{section}.{key}" if section else DEGREES.get(str(key), str(key))
        if section == "kv_cache_config" and name not in known and str(key) in known:
            name = str(key)
        inside = isinstance(value, Mapping) and name not in known and not section
        found |= _flattened(value, known, name) if inside else {name: value}
    return found


def _other_value(flag: OtherFlag, values: list[str]) -> tuple[Any, list[str]]:
    """A flag's value and the words that do not belong to it."""
    if flag.kind == "switch":
        return not flag.negated, values
    if flag.kind == "list":
        return tuple(values), []
    if not values:
        if flag.kind == "maybe":
            return True, []
        raise KvplanError(f"--{flag.name}: expected one argument")
    return values[0], values[1:]


def _expert_parts(spoken: dict[str, Any]) -> list[str]:
    """Experts spread over some of the ranks and cut over the rest: planned as over all, which hold as much."""
    parts, ranks = spoken.get("ep_size", 1), spoken.get("tp_size", 1)
    if not isinstance(parts, int) or not isinstance(ranks, int) or not 1 < parts < ranks:
        return []
    return [f"--ep-size {parts}: planned as experts over all {ranks} ranks, which hold as much of them"]


def _data_parallel(spoken: dict[str, Any]) -> list[str]:
    """SGLang's two kinds: attention in parts of the tensor-parallel ranks, or whole copies; said as vLLM's, with notes.

    Sizes are ranks: `--tp 8 --dp 8 --enable-dp-attention` are 8 GPUs, each with all heads and an eighth of the experts.
    """
    inside = spoken.pop("enable_dp_attention", False)
    if parts := spoken.pop("attn_dp_size", 0):  # SGLang 0.5.23's own word for both
        spoken["dp_size"], inside = parts, True
    tp, dp = spoken.get("tp_size", 1), spoken.get("dp_size", 1)
    if not isinstance(tp, int) or not isinstance(dp, int) or dp < 2:
        return []
    if not inside:
        spoken["dp_size"] = 1
        return [f"--dp {dp}: whole copies of the model; this is one of them"]
    if tp % dp:
        raise KvplanError(f"--enable-dp-attention: --tp {tp} does not divide into --dp {dp} parts")
    spoken["tp_size"] = tp // dp
    return [
        f"--enable-dp-attention: {tp} GPUs, attention in {dp} parts; dense MLPs and the LM head counted whole in each"
    ]


def _number(text: str) -> Any:
    try:
        return as_count(text)
    except (ValueError, KvplanError):
        return plain(text)
