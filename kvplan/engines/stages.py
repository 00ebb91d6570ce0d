"""Pipeline stages: which layers each holds, and what else of a model stands there."""

from __future__ import annotations

from typing import NamedTuple

from kvplan.engines.flags import EngineArgs
from kvplan.models.spec import LayerSpec, ModelSpec
from kvplan.models.weights import stage_spans


class PipelineStage(NamedTuple):
    """One pipeline stage of several, or the whole model as one."""

    rank: int
    num: int
    first_layer: int
    end_layer: int
    """One past the last layer."""

    @property
    def is_first(self) -> bool:
        """Whether tokens and images are embedded here."""
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        """Whether tokens are sampled and drafted here."""
        return self.rank == self.num - 1

    @property
    def num_layers(self) -> int:
        """Layers of the model here; drafting ones beside are none of them."""
        return self.end_layer - self.first_layer

    def layers(self, model: ModelSpec) -> tuple[LayerSpec, ...]:
        """The model's layers that lie here."""
        return model.layers[self.first_layer : self.end_layer]

    def __str__(self) -> str:
        """E.g. stage 1 of 2; nothing where there is one."""
        return f"stage {self.rank + 1} of {self.num}" if self.num > 1 else ""


def stages_of(model: ModelSpec, args: EngineArgs) -> list[PipelineStage]:
    """All pipeline stages that flags ask for.

    Raises:
        KvplanError: more stages than layers, or a partition that is none.
    """
    num = args.pipeline_parallel_size
    spans = stage_spans(len(model.layers), num, args.environment.pp_layer_partition)
    return [PipelineStage(i, num, first, end) for i, (first, end) in enumerate(spans)]
