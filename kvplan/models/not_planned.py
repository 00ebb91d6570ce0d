"""Published models that are not planned by name, and why, in the words of the answer; each says what to do instead."""

from __future__ import annotations

NOT_PLANNED = {
    "EximiusLabs/fusion-embedding-2-2b-preview": (
        "a plugin of its makers brings its class to vLLM; the weights and the KV of the language model are about those"
        " of Qwen/Qwen3-VL-2B-Instruct, which is planned"
    ),
    "MiniMaxAI/MiniMax-H3": (
        "it generates video by diffusion, which keeps no KV cache of tokens, and vLLM 0.32 has no class for it"
    ),
}
"""Name -> reason."""


def why_not_planned(name: str) -> str | None:
    """The reason, for any case of the name and without its organisation too; None for a name that is not listed."""
    asked = name.casefold()
    for known, why in NOT_PLANNED.items():
        if asked in (known.casefold(), known.casefold().rpartition("/")[2]):
            return f"{known} is not planned: {why}"
    return None
