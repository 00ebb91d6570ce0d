"""Asks vLLM itself for the weights and the KV plan of every architecture, and packs the answers.

    python tests/models/make_architectures.py                  every case again
    python tests/models/make_architectures.py --add NAME       a new one, from its config class's defaults
    python tests/models/make_architectures.py --add NAME --config config.json
    python tests/models/make_architectures.py --add NAME --drafts 3 [--of OTHER] [--by draft's config.json]
    python tests/models/make_architectures.py --cases FILE     a JSON object: name -> {"config": ..., "flags": ...}

Writes `tests/fixtures/architectures_vllm_0.32.json.xz`: for each case its config (cut to a few layers: more say nothing
new) and, per tensor-parallel size, bytes of parameters and of rotary tables on one rank and the plan of 20 GiB of KV.
Environment: see `vllm_meta.py`.
"""

from __future__ import annotations

import argparse
import copy
import json
import lzma
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import vllm_meta

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "architectures_vllm_0.32.json.xz"
SIZES = (1, 2, 8)
KV_BYTES = 20 << 30
NOISE = {
    *("transformers_version", "_name_or_path", "id2label", "label2id", "problem_type", "return_dict"),
    *("output_attentions", "output_hidden_states", "chunk_size_feed_forward", "use_cache", "auto_map"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "is_encoder_decoder"),
}


def default_config(architecture: str, layers: int = 4) -> dict[str, Any]:
    """The defaults of the architecture's config class, cut to a few layers."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    tables = [getattr(modeling_auto, name) for name in dir(modeling_auto) if name.endswith("_MAPPING_NAMES")]
    kinds = {
        a: kind
        for table in tables
        for kind, names in table.items()
        for a in ([names] if isinstance(names, str) else names)
    }
    config = _clean(CONFIG_MAPPING[kinds[architecture]]().to_dict())
    config |= {"architectures": [architecture], "dtype": config.get("dtype") or "bfloat16"}
    for part in (config, *(v for v in config.values() if isinstance(v, dict))):
        cut(part, layers)
    return config


def _clean(config: dict[str, Any]) -> dict[str, Any]:
    kept = {k: _clean(v) if isinstance(v, dict) else v for k, v in config.items() if k not in NOISE}
    return {k: v for k, v in kept.items() if v is not None or k in ("sliding_window", "q_lora_rank")}


def cut(config: dict[str, Any], layers: int) -> None:
    """Keep the first layers; lists with an entry a layer are cut too."""
    key = next((k for k in ("num_hidden_layers", "n_layer", "num_layers") if k in config), None)
    if key is None or config[key] <= layers:
        return
    for name, value in config.items():
        if isinstance(value, list) and len(value) == config[key]:
            config[name] = value[:layers]
    config[key] = layers


def ask(case: dict[str, Any], tp: int) -> dict[str, Any]:
    """What vLLM says of one case; its error where it does not start."""
    try:
        made, model = vllm_meta.build(
            copy.deepcopy(case["config"]),
            tp,
            device=case.get("device", "meta"),
            draft=case.get("draft"),
            beside=case.get("beside"),
            **case.get("flags", {}),
        )
    except Exception as error:  # whatever vLLM stumbles over is the answer
        return {"error": f"{type(error).__name__}: {str(error)[:120]}"}
    parameters, rotary = vllm_meta.weights(model)
    return {"weights": parameters, "rotary": rotary, **vllm_meta.plan(made, KV_BYTES)}


def _config_of(told: argparse.Namespace, cases: dict[str, Any]) -> dict[str, Any]:
    if told.of:
        return copy.deepcopy(cases[told.of]["config"])
    return json.loads(told.config.read_text()) if told.config else default_config(told.add)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--add")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--drafts", type=int, help="tokens that its own layers draft")
    parser.add_argument("--of", help="the case whose config it takes")
    parser.add_argument("--cases", type=Path, help="several at once")
    parser.add_argument("--device", default="meta", help="cpu where a constructor reads numbers")
    parser.add_argument("--by", type=Path, help="config of the model that drafts")
    told = parser.parse_args()
    cases = json.loads(lzma.decompress(FIXTURE.read_bytes())) if FIXTURE.exists() else {}
    vllm_meta.platform()
    todo = list(cases)
    if told.cases:
        added = json.loads(told.cases.read_text())
        cases, todo = cases | added, list(added)
    elif told.add:
        cases[told.add], todo = {"config": _config_of(told, cases)}, [told.add]
        cases[told.add] |= {"device": told.device} if told.device != "meta" else {}
        if told.drafts:
            config = {"method": "mtp", "num_speculative_tokens": told.drafts}
            if told.by:
                config = {"model": json.loads(told.by.read_text()), "num_speculative_tokens": told.drafts}
            cases[told.add]["flags"] = {"speculative_config": config}
    for name in todo:
        cases[name]["vllm"] = {str(tp): ask(cases[name], tp) for tp in SIZES}
        print(name, cases[name]["vllm"], flush=True)
    text = json.dumps(dict(sorted(cases.items())), separators=(",", ":"))
    FIXTURE.write_bytes(lzma.compress(text.encode(), preset=9))


if __name__ == "__main__":
    main()
