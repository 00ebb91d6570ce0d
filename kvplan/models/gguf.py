"""GGUF files: what their header says of the model and of the bits of its weights. No weight is read.

Source: the format's specification (ggml, `docs/gguf.md`) and the sizes of its blocks (`gguf-py`, `constants.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from kvplan.ground.errors import KvplanError

MAX_HEADER = 256 << 20
"""Bytes: the longest vocabularies take some ten million."""
SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
"""Kind of a value -> how it is packed; 8 is a string, 9 an array."""
BLOCKS = {
    **{0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40)},
    **{10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292)},
    **{
        16: (256, 66),
        17: (256, 74),
        18: (256, 98),
        19: (256, 50),
        20: (32, 18),
        21: (256, 110),
        22: (256, 82),
    },
    **{23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2)},
    **{34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18)},
}
"""Type of a tensor -> weights in a block, bytes of a block."""
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral3": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "granite": "GraniteForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
"""`general.architecture` -> vLLM's name."""
KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rope_theta": "rope.freq_base",
    "vocab_size": "vocab_size",
    "sliding_window": "attention.sliding_window",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
"""Config key -> the header's, behind the architecture's name."""


class Tensor(NamedTuple):
    """One tensor, as the header describes it."""

    name: str
    sizes: tuple[int, ...]
    kind: int

    @property
    def elements(self) -> int:
        """Weights in it."""
        found = 1
        for size in self.sizes:
            found *= size
        return found

    @property
    def num_bytes(self) -> int:
        """Bytes it takes in the file."""
        weights, size = BLOCKS[self.kind]
        return self.elements // weights * size


def gguf_config(file: Path) -> dict[str, Any]:
    """The config that a GGUF file's header amounts to: sizes, and the mean bits of its matrices' weights.

    Raises:
        KvplanError: no GGUF file, a damaged one, an architecture or a type of tensors that is not known.
    """
    try:
        with file.open("rb") as opened:
            facts, tensors = _header(opened, str(file))
    except OSError as error:
        raise KvplanError(f"{file}: cannot be read ({error.strerror or error})") from None
    except (struct.error, UnicodeDecodeError, MemoryError, OverflowError):
        raise KvplanError(f"{file}: a damaged GGUF header") from None
    return _config(facts, tensors, str(file))


def _header(opened: BinaryIO, where: str) -> tuple[dict[str, Any], list[Tensor]]:
    magic, version, num_tensors, num_facts = struct.unpack("<4sIQQ", opened.read(24))
    if magic != b"GGUF" or not 2 <= version <= 3:
        raise KvplanError(f"{where}: not a GGUF file of version 2 or 3")
    if num_tensors > 1 << 20 or num_facts > 1 << 16:
        raise KvplanError(f"{where}: a damaged GGUF header")
    facts = {}
    for _ in range(num_facts):
        key = _text(opened)
        facts[key] = _value(opened, *struct.unpack("<I", opened.read(4)))
    return facts, [_tensor(opened, where) for _ in range(num_tensors)]


def _text(opened: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", opened.read(8))
    if length > MAX_HEADER or opened.tell() > MAX_HEADER:
        raise struct.error
    return opened.read(length).decode()


def _value(opened: BinaryIO, kind: int) -> Any:
    """A scalar or a text; of an array its length alone."""
    if kind in SCALARS:
        return struct.unpack(SCALARS[kind], opened.read(struct.calcsize(SCALARS[kind])))[0]
    if kind == 8:
        return _text(opened)
    if kind != 9:
        raise struct.error
    inner, length = struct.unpack("<IQ", opened.read(12))
    if length > MAX_HEADER or (inner not in SCALARS and inner != 8):
        raise struct.error
    if inner == 8:
        for _ in range(length):
            _text(opened)
    else:
        opened.seek(length * struct.calcsize(SCALARS[inner]), 1)
    return range(length)


def _tensor(opened: BinaryIO, where: str) -> Tensor:
    name = _text(opened)
    (num,) = struct.unpack("<I", opened.read(4))
    if num > 8:
        raise struct.error
    *sizes, kind, _ = struct.unpack(f"<{num}QIQ", opened.read(8 * num + 12))
    if kind not in BLOCKS:
        raise KvplanError(f"{where}: tensors of type {kind} are not known")
    return Tensor(name, tuple(sizes), kind)


def _config(facts: Mapping[str, Any], tensors: list[Tensor], where: str) -> dict[str, Any]:
    kind = str(facts.get("general.architecture"))
    if kind not in ARCHITECTURES:
        raise KvplanError(
            f"{where}: GGUF architecture {kind[:40]!r} is not planned ({', '.join(ARCHITECTURES)} are)"
        )
    config: dict[str, Any] = {"architectures": [ARCHITECTURES[kind]], "torch_dtype": "float16"}
    for key, theirs in KEYS.items():
        found = facts.get(f"{kind}.{theirs}")
        if found is not None and not isinstance(found, range):
            config[key] = found
    by_name = {tensor.name: tensor for tensor in tensors}
    if "token_embd.weight" in by_name:
        config["vocab_size"] = by_name["token_embd.weight"].sizes[-1]
    config["tie_word_embeddings"] = "output.weight" not in by_name
    if kind == "gemma3" and "sliding_window" in config:
        config["sliding_window_pattern"] = 6
    if kind == "llama" and "num_experts" in config:
        config |= {"architectures": ["MixtralForCausalLM"], "num_local_experts": config.pop("num_experts")}
    matrices = [tensor for tensor in tensors if len(tensor.sizes) > 1]
    weights = sum(tensor.elements for tensor in matrices)
    if weights <= 0:
        raise KvplanError(f"{where}: a GGUF file without matrices")
    bits = 8 * sum(tensor.num_bytes for tensor in matrices) / weights
    return {**config, "quantization_config": {"quant_method": "gguf", "bits_per_weight": bits}}
