"""Asks vLLM's own offloaders which weights of every architecture they keep in host memory.

    python tests/models/make_offloaded.py

Writes `tests/fixtures/offloaded_vllm_0.32.json`: for the first case of each architecture in `make_architectures.py`'s
fixture, bytes that `--cpu-offload-gb` moves without an end, with half of those as the end, and of experts alone; bytes
and buffers of `--offload-group-size 3 --offload-prefetch-step 2`; `remade`: of all, bytes that are parameters until
they are loaded, and made anew on the card then. Null: vLLM's class does not start so.
Environment: see `vllm_meta.py`.
"""

from __future__ import annotations

import contextlib
import copy
import json
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import vllm_meta
from make_architectures import FIXTURE
from switches import first_cases

OFFLOADED = FIXTURE.with_name("offloaded_vllm_0.32.json")
EVERYTHING = 1 << 60


@contextlib.contextmanager
def host_on_meta() -> Iterator[None]:
    """What is made or moved to the host is made on the meta device as well: only its bytes are asked for."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Host(TorchFunctionMode):
        def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if func is torch.Tensor.to and kwargs.get("device") == "cpu" and args[0].is_meta:
                return args[0]
            if func is torch.empty_strided and kwargs.get("device") == "cpu":
                kwargs["device"] = "meta"
            return func(*args, **kwargs)

    with Host():
        yield


def prepare() -> None:
    """What the offloaders ask of a device."""
    import torch
    import vllm.models.dots3_note.nvidia.vision as vision
    from vllm.model_executor.offloader import uva

    del vision.DotsMoEVitModel.to  # its experts are moved before they are made FP8
    uva.is_uva_available = lambda: True
    uva.get_accelerator_view_from_cpu_tensor = lambda tensor: tensor
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.stream = lambda stream: contextlib.nullcontext()


def remade(model: Any) -> int:
    """Bytes of parameters that are made anew on the card once loaded: dots3-note's experts that see."""
    mlps = (m for m in model.modules() if type(m).__name__ == "MoESwiGLUFFNFP8")
    return sum(p.numel() * p.element_size() for mlp in mlps for p in mlp.experts.parameters())


def build(case: dict[str, Any], offloader: Any) -> Any:
    """Build one model under an offloader; None: vLLM's class does not start."""
    from vllm.model_executor.offloader import set_offloader

    set_offloader(offloader)
    try:
        with host_on_meta():
            _, model = vllm_meta.build(
                copy.deepcopy(case["config"]), 1, beside=case.get("beside"), **case.get("flags", {})
            )
            offloader.post_init()
    except Exception as error:  # whatever vLLM stumbles over is the answer
        print("   ", type(offloader).__name__, repr(error)[:160], flush=True)
        return None
    finally:
        set_offloader(None)
    return model


def ask(case: dict[str, Any]) -> dict[str, Any]:
    """Both offloaders' bytes."""
    from vllm.model_executor.offloader import PrefetchOffloader, UVAOffloader

    found: dict[str, Any] = {}

    def uva(limit: int, params: set[str]) -> int | None:
        offloader = UVAOffloader(limit, params)
        if (model := build(case, offloader)) is None:
            return None
        if later := remade(model):
            found["remade"] = later
        return offloader.cpu_offload_bytes

    found["all"] = uva(EVERYTHING, set())
    if found["all"]:
        found["half"] = uva(found["all"] // 2, set())
        found["experts"] = uva(EVERYTHING, {"experts"})
    prefetch = PrefetchOffloader(3, 1, 2)
    found["prefetch"] = None
    if build(case, prefetch) is not None:
        pool = prefetch.buffer_pool
        found["prefetch"] = [prefetch.total_offloaded_bytes, pool.total_bytes if pool else 0]
    return found


def main() -> None:
    cases = json.loads(lzma.decompress(FIXTURE.read_bytes()))
    vllm_meta.platform()
    prepare()
    found = {}
    for name in first_cases(cases):
        if cases[name].get("device") == "cpu":
            continue
        found[name] = ask(cases[name])
        print(name, found[name], flush=True)
        OFFLOADED.write_text(json.dumps(found, indent=0) + "\n")


if __name__ == "__main__":
    main()
