"""Published models that are not planned by name, and why, in the words of the answer; each says what to do instead."""

from __future__ import annotations

VIDEO = "it generates video by diffusion, which keeps no KV cache of tokens; there is nothing to plan"
OWN_CONFIG = "give its config.json or its folder"

NOT_PLANNED = {
    "EximiusLabs/fusion-embedding-2-2b-preview": (
        "a plugin of its makers brings its class to vLLM; the weights and the KV of the language model are about those"
        " of Qwen/Qwen3-VL-2B-Instruct, which is planned"
    ),
    "MegatronPrimer/dots3note": f"no public config of it was found; {OWN_CONFIG}",
    "MiniMaxAI/MiniMax-H3": VIDEO,
    "mistralai/Pixtral-Large-Instruct-2411": (
        f"the sizes of its vision tower were not found in public; {OWN_CONFIG}, as vLLM's own loader writes it"
    ),
    "nvidia/Cosmos3-Nano": f"{VIDEO} but for its reasoner: {OWN_CONFIG}",
    "nvidia/Cosmos3-Super": f"{VIDEO} but for its reasoner: {OWN_CONFIG}",
}
"""Name -> reason."""


def why_not_planned(name: str) -> str | None:
    """The reason, for any case of the name and without its organisation too; None for a name that is not listed."""
    asked = name.casefold()
    for known, why in NOT_PLANNED.items():
        if asked in (known.casefold(), known.casefold().rpartition("/")[2]):
            return f"{known} is not planned: {why}"
    return None
