"""Mix-ins of patched transformers classes.

A patched class has the name of the class that it replaces: transformers, accelerate and FSDP find layers by the names
of their classes, and ``save_pretrained`` writes the name into the configuration.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.utils.output_capturing import resolve_hidden_states_indices, selected_hidden_states

from ..host import Embedded
from ..merging import PatchedTower, TrunkMerge

__all__ = ["LayersRun", "MergingEncoder", "MergingVisionModel"]


class RecordsNothing:
    """Mix-in of a patched part for which a surrounding model installs no hooks that record outputs.

    They would record merged tokens. The tower collects its own hidden states (:meth:`MergingVisionModel.run_merged`).
    """

    _can_record_outputs: dict[str, Any] = {}  # noqa: RUF012  transformers reads it from the class

    @property
    def _output_capturing_hooks_installed(self) -> bool:
        return True

    @_output_capturing_hooks_installed.setter
    def _output_capturing_hooks_installed(self, value: bool) -> None:
        # A surrounding model marks its parts when it installs its hooks. It installs none here, and with the mark
        # the part would record nothing after the patch is removed.
        pass


class MergingEncoder(RecordsNothing):
    """Mix-in of a module that loops over the layers. The tower calls it, so its hooks fire."""

    def forward(self, *args: Any, merge: TrunkMerge | None = None, **kwargs: Any) -> Any:
        if merge is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        tokens = args[0] if args else next(iter(kwargs.values()))
        # Each layer recomputes itself in the backward, if asked to.
        return BaseModelOutput(last_hidden_state=merge.run(tokens, merge.host.layers_of(self), False))


class LayersRun(NamedTuple):
    """One run of embedded tokens over the layers.

    tokens: ``[B, n, C]`` of the last layer. merge: the run, with their sizes.
    states: those that were taken, on the grid: the input of the first layer by 0, outputs of layers by 1, 2, ...
    hidden_states: what the caller asked for, None for a state that was left out. None: the caller asked for none.
    """

    tokens: Tensor
    merge: TrunkMerge
    states: dict[int, Tensor]
    hidden_states: tuple[Tensor | None, ...] | None


class MergingVisionModel(RecordsNothing, PatchedTower):
    """Mix-in of a patched vision model. Its forward embeds, and hands the tokens to :meth:`run_merged`."""

    def run_merged(self, embedded: Embedded, options: dict[str, Any]) -> BaseModelOutputWithPooling:
        """Returns what the foreign forward returns for embedded tokens, with every token back in its place.

        A patch has the value of the token into which it merged, in ``last_hidden_state`` and every hidden state. With
        ``merged_output`` these have the merged tokens of their layers.

        Raises:
            ValueError: attention weights or an attention mask are asked for.
        """
        run = self.run_layers(embedded, options)
        normed, pooled = self._alt_patch.host.finish(self, run.tokens, run.merge.size)
        output = BaseModelOutputWithPooling(last_hidden_state=run.merge.restore(normed), pooler_output=pooled)
        if run.hidden_states is not None:
            output["hidden_states"] = run.hidden_states
        return output

    def run_layers(self, embedded: Embedded, options: dict[str, Any], take: Iterable[int] = ()) -> LayersRun:
        """Sends embedded tokens through the layers, and keeps the states ``take`` and those that the caller asked for.

        Raises:
            ValueError: see :meth:`run_merged`.
        """
        name, config = type(self).__name__, self.config  # type: ignore[attr-defined]
        if options.get("output_attentions", getattr(config, "output_attentions", False)):
            raise ValueError(
                f"output_attentions: a patched {name} has attention between merged tokens, not between patches; "
                "set it to False, or call handle.remove() first"
            )
        if options.get("attention_mask") is not None:
            raise ValueError(f"attention_mask: a patched {name} attends to all patches; expected None")
        wanted = options.get("output_hidden_states", getattr(config, "output_hidden_states", False))
        count = len(self._alt_patch.host.blocks(self)) + 1
        asked = _wanted_states(self, wanted, count)
        layers = sorted({*asked, *take} - {0})
        tokens, merge = self._alt_patch.run(self, embedded, take=tuple(i - 1 for i in layers))
        states = {0: embedded.x, **dict(zip(layers, merge.intermediates, strict=True))}
        hidden = tuple(states[i] if i in asked else None for i in range(count)) if wanted else None
        return LayersRun(tokens, merge, states, hidden)


def _wanted_states(model: Any, wanted: Any, count: int) -> list[int]:
    """Returns which of the hidden states are asked for, ascending; 0 is the input of the first layer."""
    selected = selected_hidden_states(wanted)
    if selected is None:
        return list(range(count)) if wanted else []
    return sorted(resolve_hidden_states_indices(model, selected, count))
