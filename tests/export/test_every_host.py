"""Every family of hosts as a program and as an ONNX file: equal to the patched model at two batch sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import alt
from alt.export import export_onnx, export_portable
from tests.hosts.all_families import FAMILIES, REMOVED
from tests.hosts.families import Family, build
from tests.hosts.padded_families import PADDED, PATCHES, naflex
from tests.hosts.torch_families import SEQUENCES, encode, tokens_of
from tests.patch.compare import flat, images, max_difference

from .runtimes import RUNTIMES

pytestmark = pytest.mark.slow

TOLERANCE = 2e-5
SHAPES = torch.tensor([[4, 4], [3, 4], [2, 5]])
"""Patches down and across of three images in NaFlex form; the first has no padding."""


class Outputs(nn.Module):
    """A family's model with the tensors that the tests of its host compare."""

    def __init__(self, family: Family, model: nn.Module) -> None:
        super().__init__()
        self.family, self.model = family, model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(flat(self.family.run(self.model, images)))


class Sequences(nn.Module):
    """An encoder of sequences, in either layout."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return (encode(self.model, tokens),)


class NaFlex(nn.Module):
    """SigLIP 2 with its resized position embeddings as an input, because their shape depends on values of a tensor."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, pixel_attention_mask: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        embeddings = getattr(self.model, "vision_model", self.model).embeddings
        embeddings.resize_positional_embeddings = lambda *_, **__: positions
        try:
            run = getattr(self.model, "get_image_features", self.model)
            output = run(pixel_values=pixel_values, pixel_attention_mask=pixel_attention_mask, spatial_shapes=None)
        finally:
            del embeddings.resize_positional_embeddings
        return tuple(real_tokens(list(output.values()), pixel_attention_mask))


def real_tokens(outputs: list[Tensor], mask: Tensor) -> list[Tensor]:
    """Outputs with zeros instead of padded tokens: those that merged with padding are nobody's."""
    return [x * mask[..., None] if x.dim() == 3 else x for x in outputs]


def naflex_rows(model: Any, batch: int) -> dict[str, Tensor]:
    """The inputs of :class:`NaFlex` for so many images."""
    embeddings, shapes = getattr(model, "vision_model", model).embeddings, SHAPES[:batch]
    side = embeddings.position_embedding_size
    grid = embeddings.position_embedding.weight.detach().reshape(side, side, -1)
    return {
        "pixel_values": naflex(images(batch, torch.float32))["pixel_values"],
        "pixel_attention_mask": (torch.arange(PATCHES) < shapes.prod(1, keepdim=True)).long(),
        "positions": embeddings.resize_positional_embeddings(grid, shapes, PATCHES),
    }


def naflex_of_the_host(model: Any, rows: Mapping[str, Tensor]) -> list[Tensor]:
    """The outputs of the model itself, which resizes positions."""
    run = getattr(model, "get_image_features", model)
    given = {name: rows[name] for name in ("pixel_values", "pixel_attention_mask")}
    output = run(**given, spatial_shapes=SHAPES[: len(rows["positions"])])
    return real_tokens(list(output.values()), rows["pixel_attention_mask"])


def case(name: str) -> tuple[nn.Module, Iterator[tuple[Mapping[str, Tensor], list[Tensor]]]]:
    """A patched model to export, and for two batch sizes its inputs by name and what it computes from them."""
    family = FAMILIES[name]
    model = build(family, torch.float32)
    alt.patch_model(model, REMOVED)
    if name in PADDED:
        rows = [naflex_rows(model, batch) for batch in (3, 1)]
        return NaFlex(model).eval(), ((inputs, naflex_of_the_host(model, inputs)) for inputs in rows)
    batches = [images(batch, torch.float32) for batch in (3, 1)]
    if name in SEQUENCES:
        encoder = Sequences(model).eval()
        return encoder, (({"tokens": tokens_of(x)}, list(encoder(tokens_of(x)))) for x in batches)
    outputs = Outputs(family, model).eval()
    return outputs, (({"images": x}, list(outputs(x))) for x in batches)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_exported_tower_equals_the_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model, checks = case(name)
    pairs = list(checks)
    example = pairs[0][0]
    programs: list[Any] = []

    def keep(*arguments: Any) -> Any:
        programs.append(export_portable(*arguments))
        return programs[-1]

    monkeypatch.setattr("alt.export.onnx_file.export_portable", keep)  # one trace for both checks
    file = export_onnx(model, tmp_path / "tower.onnx", example["images"] if list(example) == ["images"] else example)
    assert "alt_kernels" not in str(programs[0].graph)
    program = programs[0].module()
    runs = {runtime: load(file) for runtime, load in RUNTIMES.items()}
    runs["the program"] = lambda inputs: list(program(*inputs.values()))
    differences = {
        (name, len(expected[0])): max_difference(run(inputs), expected)
        for name, run in runs.items()
        for inputs, expected in pairs
    }
    assert max(differences.values()) < TOLERANCE, differences


def test_naflex_by_itself_is_refused() -> None:
    model = build(PADDED["Siglip2VisionModel"], torch.float32)
    alt.patch_model(model, REMOVED)
    with pytest.raises(ValueError, match=r"^model: torch.export cannot trace it for batches of any size: "):
        export_portable(model, naflex(images(2, torch.float32)))
