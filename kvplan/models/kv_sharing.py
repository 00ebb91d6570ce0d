"""Models whose last layers read earlier layers' KV, and so need a prompt's last token alone: Gemma 3n and Gemma 4.

vLLM 0.32 `--kv-sharing-fast-prefill`: the classes of `gemma3n.py` and `gemma4.py` run the layers from the first of
`num_kv_shared_layers` on only for tokens that are sampled from, out of buffers made when the model is loaded.
"""

from __future__ import annotations

from kvplan.models.spec import ModelSpec

SKIPPING = ("Gemma3nFor", "Gemma4ForC", "Gemma4Unified", "DiffusionGemma")
"""Prefixes of the architectures whose classes read the flag."""


def first_kv_shared_layer(model: ModelSpec) -> int:
    """The first of the layers at the end that keep no KV; as many as there are layers where none does.

    >>> from kvplan.models.load import load_model
    >>> first_kv_shared_layer(load_model("google/gemma-4-E4B-it"))
    24
    """
    first = len(model.layers)
    while first and model.layers[first - 1].attention.kv_shared_with is not None:
        first -= 1
    return first


def reads_fast_prefill(model: ModelSpec) -> bool:
    """Whether the model's class reads the flag at all."""
    return model.architecture.startswith(SKIPPING) and first_kv_shared_layer(model) > 0


def fast_prefill_bytes(model: ModelSpec, max_num_batched_tokens: int) -> int:
    """Bytes of the buffers: positions, hidden states (of all of AltUp's streams), and embeddings per layer.

    vLLM 0.32 `Gemma3nTextModel.__init__`, `Gemma4Model.__init__`.
    """
    sizes = {w.name: w.rows for layer in model.layers[:1] for w in layer.extras}
    streams, side = sizes.get("altup.correction_coefs", 1), sizes.get("per_layer_input_gate", 0)
    per_token = 8 + 2 * (model.hidden_size * streams + len(model.layers) * side)
    return max_num_batched_tokens * per_token
