"""What an engine makes of quantised matrices for a card's kernels once they are loaded: rows set apart, or 16 bits.

Source: vLLM 0.32 `layers/quantization/utils/fp8_utils.py: _maybe_pad_fp8_weight`, `kernels/linear/mxfp8`,
`kernels/linear/mxfp4/emulation.py`, `layers/quantization/modelopt.py: ModelOptMxFp8FusedMoE`. Which card does what,
`engines/weights_held.py` knows.
"""

from __future__ import annotations

from typing import NamedTuple

from kvplan.ground.units import cdiv
from kvplan.models.modules import Module
from kvplan.models.quantization import Scheme

APART, GAP = 512, 256
"""Bytes of a row whose multiples are set apart, and how far: memory channels of AMD's cards."""
DOT_COLUMNS = 128
"""MXFP8 kernels of CDNA4 take so many columns at a time."""


class HeldWeights(NamedTuple):
    """Kinds of matrices that are not held as they are loaded."""

    apart: bool = False
    """Rows of FP8."""
    wide_mxfp8: bool = False
    """In 16 bits; experts where the checkpoint's format says so."""
    ragged_mxfp8: bool = False
    """Those whose columns are no whole `DOT_COLUMNS`."""
    batched_mxfp8: bool = False
    """The one that DeepSeek V4.1 multiplies group by group."""
    wide_mxfp4: bool = False
    """Linear layers in 16 bits."""
    lone_mxfp4: bool = False
    """Those whose activations are not quantised."""

    def elements_bytes(self, module: Module, scheme: Scheme, rows: int, cols: int) -> int:
        """A matrix of such a scheme without its scales, which are always kept."""
        expert = module.role == "expert"
        if self.is_wide(module, scheme, cols):
            return 2 * rows * cols
        gaps = rows * GAP if self.apart and scheme.sets_apart and not expert and cols % APART == 0 else 0
        return cdiv(rows * cols * scheme.bits, 8) + gaps

    def is_wide(self, module: Module, scheme: Scheme, cols: int) -> bool:
        """Whether a matrix of so many columns lies there in 16 bits."""
        expert = module.role == "expert"
        if scheme.name == "mxfp4":
            return not expert and (self.wide_mxfp4 or (self.lone_mxfp4 and scheme.weights_alone))
        if not scheme.name.startswith("mxfp8") or (expert and not scheme.widens_experts):
            return False
        ragged = self.ragged_mxfp8 and cols % DOT_COLUMNS != 0 and not scheme.name.endswith("block")
        batched = self.batched_mxfp8 and module.name.endswith("wo_a") and scheme.name.endswith("block")
        return self.wide_mxfp8 or (ragged and not expert) or batched

    @property
    def is_noticed(self) -> bool:
        """More than the one matrix of `batched_mxfp8` may lie otherwise."""
        return self._replace(batched_mxfp8=False) != AS_LOADED


AS_LOADED = HeldWeights()
