"""Names of X-CLIP's weights here, in the authors' checkpoints, and in transformers' ``XCLIPModel``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["from_authors", "from_transformers", "is_transformers", "to_transformers"]


class _Row(NamedTuple):
    """Beginnings of names; ``#`` is the number of a block, and what follows is the same everywhere.

    A name of transformers with ``?`` is three tensors (q, k, v), which are stacked in the others. transposed: the
    matrix is transposed in transformers' file.
    """

    ours: str
    authors: str
    transformers: str
    transposed: bool = False


def _block(ours: str, authors: str, transformers: str, norms: tuple[str, str], ffn: tuple[str, str]) -> list[_Row]:
    """Returns the rows of a CLIP block; norms and ffn are our names of them."""
    pairs = (
        (norms[0], "ln_1.", "layer_norm1."),
        (norms[1], "ln_2.", "layer_norm2."),
        (ffn[0], "mlp.c_fc.", "mlp.fc1."),
        (ffn[1], "mlp.c_proj.", "mlp.fc2."),
    )
    return [_Row(f"{ours}{a}", f"{authors}{b}", f"{transformers}{c}") for a, b, c in pairs]


def _attention(ours: str, authors: str, transformers: str) -> list[_Row]:
    return [
        _Row(f"{ours}in_proj_", f"{authors}in_proj_", f"{transformers}?_proj."),
        _Row(f"{ours}out_proj.", f"{authors}out_proj.", f"{transformers}out_proj."),
    ]


_OPEN_CLIP = (("ln_1.", "ln_2."), ("mlp.c_fc.", "mlp.c_proj."))
_V, _A, _T = "backbone.visual.", "visual.", "vision_model."
_VB, _AB, _TB = f"{_V}transformer.resblocks.#.", f"{_A}transformer.resblocks.#.", f"{_T}encoder.layers.#."
_MIT = ("integration.blocks.#.", "mit.resblocks.#.", "mit.encoder.layers.#.")
_TEXT = ("text.clip.transformer.resblocks.#.", "transformer.resblocks.#.", "text_model.encoder.layers.#.")
_ROWS = (
    _Row(f"{_V}class_embedding", f"{_A}class_embedding", f"{_T}embeddings.class_embedding"),
    _Row(f"{_V}conv1.", f"{_A}conv1.", f"{_T}embeddings.patch_embedding."),
    _Row(f"{_V}positional_embedding", f"{_A}positional_embedding", f"{_T}embeddings.position_embedding.weight"),
    _Row(f"{_V}ln_pre.", f"{_A}ln_pre.", f"{_T}pre_layernorm."),
    _Row(f"{_V}ln_post.", f"{_A}ln_post.", f"{_T}post_layernorm."),
    _Row(f"{_V}proj", f"{_A}proj", "visual_projection.weight", transposed=True),
    *_attention(f"{_VB}attn.", f"{_AB}attn.", f"{_TB}self_attn."),
    *_block(_VB, _AB, _TB, *_OPEN_CLIP),
    _Row(f"{_VB}message_adapter.project.", f"{_AB}message_fc.", f"{_TB}message_fc."),
    _Row(f"{_VB}message_adapter.norm.", f"{_AB}message_ln.", f"{_TB}message_ln."),
    *_attention(f"{_VB}message_adapter.attention.", f"{_AB}message_attn.", f"{_TB}message_attn."),
    _Row("integration.positions", "mit.positional_embedding", "mit.position_embedding"),
    *_attention(f"{_MIT[0]}attention.", f"{_MIT[1]}attn.", f"{_MIT[2]}self_attn."),
    *_block(*_MIT, ("norm.", "ffn_norm."), ("up.", "down.")),
    _Row("prompts.patch_norm.", "prompts_visual_ln.", "prompts_visual_layernorm."),
    _Row("prompts.patch_projection", "prompts_visual_proj", "prompts_visual_projection"),
    _Row("prompts.norm.", "prompts_generator.norm.", "prompts_generator.layernorm."),
    _Row("prompts.alpha", "prompts_generator.alpha", "prompts_generator.alpha"),
    *(
        _Row(f"prompts.blocks.#.{ours}.", f"prompts_generator.decoder.#.{a}.", f"prompts_generator.decoder.#.{a}.")
        for ours, a in {
            "query": "cross_attn.q_proj",
            "key": "cross_attn.k_proj",
            "value": "cross_attn.v_proj",
            "out": "cross_attn.proj",
            "norm": "norm1",
            "ffn_norm": "norm3",
            "ffn.up": "mlp.0",
            "ffn.down": "mlp.3",
        }.items()
    ),
    _Row("logit_scale", "logit_scale", "logit_scale"),
    _Row("text.clip.token_embedding.", "token_embedding.", "text_model.embeddings.token_embedding."),
    _Row(
        "text.clip.positional_embedding",
        "positional_embedding",
        "text_model.embeddings.position_embedding.weight",
    ),
    _Row("text.clip.ln_final.", "ln_final.", "text_model.final_layer_norm."),
    _Row("text.clip.text_projection", "text_projection", "text_projection.weight", transposed=True),
    *_attention(f"{_TEXT[0]}attn.", f"{_TEXT[1]}attn.", f"{_TEXT[2]}self_attn."),
    *_block(*_TEXT, *_OPEN_CLIP),
)


def _translate(name: str, column: int, target: int) -> tuple[str, _Row, str] | None:
    """Returns a name of one column in another, its row, and the letter (q, k or v) that stood for ``?``."""
    for row in _ROWS:
        there = row[column]
        pattern = re.escape(str(there)).replace(r"\#", r"(?P<number>\d+)").replace(r"\?", "(?P<letter>[qkv])")
        whole = not str(there).endswith((".", "_"))
        found = re.match(pattern + ("$" if whole else ""), name)
        if found is not None:
            groups = found.groupdict()
            begin = str(row[target]).replace("#", groups.get("number") or "#")
            return begin + name[found.end() :], row, groups.get("letter") or ""
    return None


def _shape(name: str, tensor: Tensor) -> Tensor:
    """Brings a tensor of another file into our form: the scale itself, and positions without a batch."""
    if name == "logit_scale":
        return tensor.exp()
    return tensor[0] if name == "integration.positions" and tensor.dim() == 3 else tensor


def from_authors(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the authors' tensors under our names, and the names of those that are not X-CLIP's."""
    found, unknown = {}, []
    for name, tensor in state.items():
        translated = _translate(name, 1, 0)
        if translated is None:
            unknown.append(name)
        else:
            found[translated[0]] = _shape(translated[0], tensor)
    return found, unknown


def is_transformers(state: Mapping[str, Tensor]) -> bool:
    """Returns True if the names are those of transformers' XCLIPModel."""
    return any(name.startswith("vision_model.") for name in state)


def from_transformers(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Returns transformers' tensors under our names, and the names of those that are not X-CLIP's."""
    found: dict[str, Tensor] = {}
    unknown: list[str] = []
    stacks: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        translated = _translate(name, 2, 0)
        if translated is None:
            unknown.append(name)
            continue
        ours, row, letter = translated
        if letter:
            stacks.setdefault(ours, {})[letter] = tensor
        else:
            found[ours] = _shape(ours, tensor.T if row.transposed else tensor)
    for ours, parts in stacks.items():
        if set(parts) == set("qkv"):
            found[ours] = torch.cat([parts[letter] for letter in "qkv"])
    return found, unknown


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns our tensors under transformers' names; class texts are left out.

    Raises:
        ValueError: a tensor has no place in an ``XCLIPModel``.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("head.") or name == "text.ids":
            continue
        translated = _translate(name, 0, 2)
        if translated is None:
            raise ValueError(f"model: transformers' XCLIPModel has no place for {name}")
        theirs, row, _ = translated
        if "?" in theirs:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                found[theirs.replace("?", letter)] = part
        elif name == "logit_scale":
            found[theirs] = tensor.log()
        elif name == "integration.positions":
            found[theirs] = tensor[None]
        else:
            found[theirs] = tensor.T if row.transposed else tensor
    return found
