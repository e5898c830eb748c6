"""Mix-in of patched backbones: models whose forward returns maps of features for dense tasks (``AutoBackbone``).

Every map has a value for each patch: that of the token into which it merged in the layers up to the map's stage.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BackboneOutput
from transformers.utils.output_capturing import capture_outputs

from .family import patches_of
from .merging import LayersRun, MergingVisionModel

__all__ = ["MergingBackbone"]


class MergingBackbone(MergingVisionModel):
    """Mix-in of a patched backbone with DINOv2's options."""

    @capture_outputs  # no surrounding model records what the layers return: their tokens are merged
    def forward(self, pixel_values: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        tower: Any = self
        if tower.config.reshape_hidden_states and self._alt_patch.merged_output:
            raise ValueError(
                f"feature_maps: a patched {type(self).__name__} with merged_output=True makes none, because merged "
                "tokens lie on no grid; set config.reshape_hidden_states = False to get the tokens"
            )
        stages = [i for i, name in enumerate(tower.stage_names) if name in tower.out_features]
        embedded = self._alt_patch.host.embed(tower, pixel_values)
        run = self.run_layers(embedded, {**kwargs, "attention_mask": attention_mask}, stages)
        tokens = [self.finish_stage(i, run.states[i]) for i in stages]
        return self.make_output(run, tokens, (pixel_values.shape[-2], pixel_values.shape[-1]))

    def finish_stage(self, stage: int, x: Tensor) -> Tensor:
        """Returns a stage's tokens, with the final norm if the configuration asks for it."""
        tower: Any = self
        return self._alt_patch.host.finish(tower, x, None)[0] if tower.config.apply_layernorm else x

    def make_output(self, run: LayersRun, tokens: list[Tensor], size: tuple[int, int]) -> BackboneOutput:
        """Returns what the foreign forward returns. size: height and width of the images in pixels."""
        return BackboneOutput(tuple(self.to_map(x, size) for x in tokens), run.hidden_states)

    def to_map(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns tokens ``[B, N, C]`` as a map ``[B, C, h, w]``, or as they are if the configuration says so."""
        tower: Any = self
        if not tower.config.reshape_hidden_states:
            return x
        patches = x[:, self._alt_patch.host.num_protected(tower) :]
        return patches.transpose(1, 2).unflatten(2, patches_of(tower.config, size)).contiguous()
