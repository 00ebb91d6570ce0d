"""Memory for LoRA adapters: vLLM takes it at start-up, for so many adapters of the highest rank.

Source: vLLM 0.32 `lora/layers`: for each matrix an A (rank x columns) and a B (rows x rank) per adapter, cut as the
matrix is; for the embedding and the head of families that allow it, a pair over the whole vocabulary.
"""

from __future__ import annotations

from kvplan.models.modules import layer_modules
from kvplan.models.spec import ModelSpec
from kvplan.models.weights import rank_cut, stage_spans

WITH_EMBEDDINGS = (
    *(
        "Llama",
        "LLaMA",
        "Mistral",
        "Ministral",
        "Mixtral",
        "Qwen3",
        "Granite",
        "Gemma4ForC",
        "Exaone",
        "Cohere",
    ),
    *("DeciLM", "NemotronH", "NemotronFor", "FalconH1", "Lfm2", "Jamba", "MiniCPMFor", "PhiMoE", "Solar"),
    *("Apertus", "HyperCLOVAX", "K2Horizon", "Param2MoE", "InternLM3", "IQuestCoder", "TeleChat3"),
)
"""Architecture prefixes whose classes adapt the embedding and the head too."""
LORA_ITEMSIZE = 2


def lora_bytes(
    model: ModelSpec,
    *,
    max_loras: int,
    max_lora_rank: int,
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    pp_layer_partition: tuple[int, ...] = (),
    data_parallel_size: int = 1,
    enable_expert_parallel: bool = False,
) -> int:
    """Bytes on the rank with most, for `max_loras` adapters of `max_lora_rank`.

    >>> from kvplan.models.load import load_model
    >>> lora_bytes(load_model("Llama-3.2-1B"), max_loras=2, max_lora_rank=16) // 2**20
    50
    """
    cut = rank_cut(tensor_parallel_size, data_parallel_size, enable_expert_parallel)
    each: dict[object, int] = {}
    for layer in set(model.layers):
        modules = [m for m in layer_modules(layer, model.hidden_size, cut) if m.linear and m.cols > 1]
        each[layer] = sum(m.copies * (m.rows + m.cols) for m in modules)
    spans = stage_spans(len(model.layers), pipeline_parallel_size, pp_layer_partition)
    columns = max(sum(each[layer] for layer in model.layers[first:last]) for first, last in spans)
    if model.architecture.startswith(WITH_EMBEDDINGS):
        columns += 2 * (model.vocab_size + model.hidden_size)
    return columns * max_lora_rank * max_loras * LORA_ITEMSIZE
