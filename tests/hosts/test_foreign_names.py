"""Nothing outside ``alt.hosts`` knows the attribute names of a foreign model."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALT = ROOT / "alt"

# open_clip's, timm's and transformers' names. As attributes, and as strings for getattr, paths and state dicts.
FOREIGN = {
    *("resblocks", "conv1", "class_embedding", "positional_embedding", "patch_dropout", "ln_pre", "ln_post"),
    *("ln_1", "ln_2", "ls_1", "ls_2", "ln_attn", "ln_q", "ln_k", "c_fc", "c_proj", "attn_pool", "pool_type"),
    *("grid_size", "image_mean", "image_std", "_embeds", "_global_pool", "text_projection", "ln_final"),
    *("patch_embed", "pos_embed", "cls_token", "reg_token", "num_prefix_tokens", "norm1", "norm2", "gamma_1", "trunk"),
    *("vision_model", "visual_projection", "self_attn", "layer_norm1", "layer_norm2", "q_proj", "k_proj", "v_proj"),
    *("pre_layrnorm", "post_layernorm", "patch_embedding", "position_embedding", "position_embeddings", "o_proj"),
    *("layernorm_before", "layernorm_after", "layer_scale1", "layer_scale2", "num_register_tokens", "vision_tower"),
    *("_attn_implementation", "gradient_checkpointing", "last_hidden_state", "pooler_output", "hidden_states"),
    *("qkv", "q_norm", "k_norm", "ls1", "ls2", "drop_path1", "drop_path2", "norm_pre", "fc_norm", "dist_token"),
    *("patch_drop", "global_pool", "forward_head", "forward_features", "attn_drop", "proj_drop"),
}
# Of CLIP models, not of towers: asked of the host like the others, but common words of our own hosts too.
ASKED = {"token_embedding", "position_embedding", "patch_embedding"}
# Fields of our own that are named like the foreign one: a tower inside RegionEncoder, and that of the demonstration.
OWN_VISUAL = {"alt/models/region_encoder.py": {"self"}, "alt/entityworld/demo": {"self", "tower"}}


def files() -> list[Path]:
    return [path for path in sorted(ALT.rglob("*.py")) if "hosts" not in path.relative_to(ALT).parts]


def owns_visual(path: str, value: ast.expr) -> bool:
    return any(
        path.startswith(home) and isinstance(value, ast.Name) and value.id in names
        for home, names in OWN_VISUAL.items()
    )


def offences(path: str, source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            asked = node.attr in ASKED and "host" in ast.unparse(node.value)
            if node.attr in FOREIGN | ASKED and not asked:
                yield f"{path}:{node.lineno}: {ast.unparse(node)}"
            if node.attr == "visual" and not owns_visual(path, node.value):
                yield f"{path}:{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            found = FOREIGN & set(node.value.split(".")) - ASKED
            if found:
                yield f"{path}:{node.lineno}: {node.value!r}"


def test_foreign_names_are_in_the_hosts_alone() -> None:
    found = [line for path in files() for line in offences(str(path.relative_to(ROOT)), path.read_text())]
    assert not found, "ask the host instead:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "model.backbone.visual.image_size",
        "clip.visual",
        "tower.transformer.resblocks[-1].ln_1",
        "getattr(tower, 'positional_embedding')",
        "f(state['visual.conv1.weight'])",
        "clip.token_embedding.weight",
        "tower.blocks[0].norm1",
        "output.last_hidden_state",
        "block.attn.qkv(x)",
    ],
)
def test_the_rule_bites(source: str) -> None:
    assert list(offences("alt/models/x.py", source))


@pytest.mark.parametrize(
    "source", ["host.token_embedding(clip)", "find_host(clip).position_embedding(tower)", "encoder.tower", "x.regions"]
)
def test_asking_the_host_is_allowed(source: str) -> None:
    assert not list(offences("alt/models/x.py", source))


def test_no_attention_kind_carries_a_packages_name() -> None:
    for path in (ALT / "patch").rglob("*.py"):
        code = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
        assert not any(n.value in ("open_clip", "multihead") for n in code), path
