"""Asks vLLM what it makes of quantised weights once they are loaded on cards that do not multiply them as they are.

    python tests/models/make_held.py

Writes `tests/fixtures/held_vllm_0.32.json`: for each kind of AMD card, each format and small models, bytes of the
storage behind the parameters after `process_weights_after_loading`, as vLLM's own classes run it on the CPU under its
ROCm platform; with variables of the environment where the name says so.
Environment: see `vllm_meta.py`. Each card has a process of its own: vLLM reads it where it is imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import vllm_meta
from held_cases import CARDS, CASES, MODELS, Case

HELD = Path(__file__).resolve().parents[1] / "fixtures" / "held_vllm_0.32.json"


def rocm(gfx: str) -> Any:
    """vLLM's ROCm platform on a card of this name."""
    import torch

    card = types.SimpleNamespace(gcnArchName=gfx, multi_processor_count=304, warp_size=64)
    torch.cuda.get_device_properties = lambda *a, **k: card
    os.environ["HIP_VISIBLE_DEVICES"] = ""  # Triton: no driver needed
    import vllm.platforms.rocm as platform

    class Card(platform.RocmPlatform):  # type: ignore[misc, name-defined]
        get_device_name = classmethod(lambda cls, device_id=0: gfx)
        get_device_total_memory = classmethod(lambda cls, device_id=0: 192 << 30)
        device_count = classmethod(lambda cls: 8)
        is_pin_memory_available = classmethod(lambda cls: False)
        import_kernels = classmethod(lambda cls: None)
        verify_quantization = classmethod(lambda cls, quant: None)

    return Card()


def operators() -> None:
    """vLLM's compiled operators by torch's: shapes and dtypes are theirs, numbers nobody reads."""
    import torch
    import vllm._custom_ops as ops
    from vllm.platforms import current_platform

    def scaled(x: Any, scale: Any = None, **told: Any) -> tuple[Any, Any]:
        rows = (x.shape[0], 1) if told.get("use_per_token_if_dynamic") else (1,)
        made = torch.ones(rows) if scale is None else scale
        return torch.empty(x.shape, dtype=current_platform.fp8_dtype()), made

    def blocks(weight: Any, **told: Any) -> tuple[Any, Any]:
        rows, cols = (-(-size // 128) for size in weight.shape)
        return torch.empty(weight.shape, dtype=current_platform.fp8_dtype()), torch.ones(rows, cols)

    def wide(weight: Any, scale: Any, dtype: Any) -> Any:
        return torch.empty(*weight.shape[:-1], 2 * weight.shape[-1], dtype=dtype)

    ops.scaled_fp8_quant = scaled
    import vllm.model_executor.kernels.linear.mxfp4.emulation as mxfp4
    import vllm.model_executor.layers.fused_moe.experts.ocp_mx_emulation_moe as experts
    import vllm.model_executor.layers.quantization.online.fp8 as online
    import vllm.model_executor.layers.quantization.online.mxfp8 as mxfp8

    def rows_of_32(weight: Any, **told: Any) -> tuple[Any, Any]:
        scales = torch.empty(*weight.shape[:-1], weight.shape[-1] // 32, dtype=torch.uint8).random_()
        return weight.to(torch.float8_e4m3fn), scales

    online.per_block_cast_to_fp8, mxfp8.mxfp8_e4m3_quantize = blocks, rows_of_32
    experts.has_quark = lambda: True
    mxfp4.has_quark, mxfp4.dequant_mxfp4 = (lambda: True), wide


def storage(model: Any) -> int:
    """Bytes behind all parameters, each storage once."""
    kept = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in (*model.parameters(), *model.buffers())
        if t.numel()
    }
    return sum(kept.values())


@contextlib.contextmanager
def environment(told: dict[str, str]) -> Any:
    os.environ |= told
    try:
        yield
    finally:
        for name in told:
            del os.environ[name]


def ask(case: Case, config: dict[str, Any]) -> Any:
    """Bytes; or what vLLM stumbles over."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.utils import process_weights_after_loading

    config = {**config, **({"quantization_config": case.config} if case.config else {})}
    flags = {"quantization": case.quantization} if case.quantization else {}
    with environment(case.env):
        try:
            made, model = vllm_meta.build(config, 1, device="cpu", dtype="bfloat16", **flags)
            with set_current_vllm_config(made):
                get_model_loader(made.load_config).load_weights(model, made.model_config)
                for name, parameter in model.named_parameters():
                    if name.endswith("scale") and parameter.dtype == torch.uint8:
                        parameter.data.random_(0, 255)  # no two rows alike
                process_weights_after_loading(model, made.model_config, torch.device("cpu"))
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:200]}"
        return storage(model)


def main() -> None:
    if len(sys.argv) > 1:
        card = sys.argv[1]
        vllm_meta.platform(lambda: rocm(CARDS[card]))
        operators()
        found = {
            name: {kind: ask(case, config) for kind, config in MODELS.items()} for name, case in CASES.items()
        }
        print("FOUND" + json.dumps(found))
        return
    found = {}
    for card in CARDS:
        told = subprocess.run([sys.executable, __file__, card], capture_output=True, text=True, check=False)
        line = next((x for x in told.stdout.splitlines() if x.startswith("FOUND")), None)
        found[card] = json.loads(line[5:]) if line else told.stderr[-2000:]
        print(card, json.dumps(found[card], indent=1), flush=True)
    HELD.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
