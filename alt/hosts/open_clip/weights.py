"""State dicts of other writers, brought into the form of open_clip's models."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from torch import Tensor

__all__ = ["arrange_state"]

_OF_ARCHIVES = ("input_resolution", "context_length", "vocab_size")  # numbers beside the tensors of OpenAI's files


def arrange_state(clip: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of a CLIP file under the names and shapes of ``clip``, by open_clip's own conversions.

    Tensors that ``clip`` lacks stay under the names of the file.
    """
    state = {name: tensor for name, tensor in tensors.items() if name not in _OF_ARCHIVES}
    state = convert_state_dict(clip, state)
    if "positional_embedding" in state and not hasattr(clip, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    state.pop("text.transformer.embeddings.position_ids", None)  # transformers wrote it before 4.31
    own = clip.state_dict()
    if "logit_bias" in own and "logit_bias" not in state:
        state["logit_bias"] = torch.zeros_like(own["logit_bias"])
    for name in ("logit_scale", "logit_bias"):  # of shape [] or [1]
        if name in state and name in own and state[name].numel() == 1:
            state[name] = state[name].reshape(own[name].shape)
    return state
