"""Which cards hold quantised weights otherwise than they are loaded, and which flags and variables turn that.

Source: vLLM 0.32 `kernels/linear/__init__.py` (which kernel a card takes, the first that it can run), `platforms`
(`supports_mx`: CDNA4 alone), `fused_moe/oracle/mxfp8.py`, `envs.py`. NVIDIA's cards from Turing on have Marlin for
MXFP8 and MXFP4 where they have nothing better; AMD's have AITER for MXFP4 on CDNA4, as vLLM's image does. Padding of
unquantised experts (`VLLM_ROCM_MOE_PADDING`) leaves their storage as it is (pull request 46009).
"""

from __future__ import annotations

from kvplan.engines.flags import EngineArgs, EngineVersion
from kvplan.engines.kernel_flags import kernel_config
from kvplan.ground.gpu import GpuSpec
from kvplan.models.held import AS_LOADED, HeldWeights


def weights_held(args: EngineArgs, gpu: GpuSpec, engine: EngineVersion) -> HeldWeights:
    """What vLLM makes of quantised weights on this card; of other engines, and its first one, it is not known."""
    if engine.engine != "vllm" or engine.legacy:
        return AS_LOADED
    env, amd = args.environment, gpu.vendor == "amd"
    native = gpu.architecture == "cdna4"
    mxfp8, mxfp4 = (_asked(args, kind) == "emulation" or (amd and not native) for kind in ("mxfp8", "mxfp4"))
    return HeldWeights(
        apart=amd and env.rocm_fp8_padding,
        wide_mxfp8=mxfp8 and env.mxfp8_emulation_dequant_at_load,
        ragged_mxfp8=amd and native,
        batched_mxfp8=not amd and int(gpu.compute_capability) != 10 and env.mxfp8_emulation_dequant_at_load,
        wide_mxfp4=mxfp4 and env.mxfp4_emulation_dequant_at_load,
        lone_mxfp4=amd and env.mxfp4_emulation_dequant_at_load,
    )


def _asked(args: EngineArgs, kind: str) -> str:
    """The kernel that flags ask for, for products of such weights."""
    told = kernel_config(args.kernel_config)
    of_kind = (told.linear_backend_per_quant or {}).get(kind)
    return of_kind or (args.linear_backend if args.linear_backend != "auto" else told.linear_backend)
