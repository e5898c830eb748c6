"""Model files and CLIP weights that somebody else wrote: nothing runs, downloads, or is built beyond its tensors."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch
from torch import nn

import alt
from alt.corpus import Corpus
from alt.evaluate.metrics import VideoMetrics
from alt.files import read_tensors
from alt.models import load_backbone
from alt.models.clip import build_clip
from alt.models.clip_file import read_clip_weights
from alt.models.weights import load_model, save_model

from .tiny_models import tiny_alt

Header = dict[str, Any]
TEXTS = {"backbone": "mini", "pretrained": None, "sha256": "", "templates": ["{}"]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_alt()
    width = model.width
    model.set_classes(["a", "b", "c"], torch.randn(3, width))
    corpus = Corpus(("cup", "box"), ("", ""), ("object", "object"), embeddings=torch.randn(2, width))
    model.set_corpus(corpus)
    return save_model(model, tmp_path_factory.mktemp("saved") / "model.safetensors")


def edited(saved: Path, path: Path, change: Callable[[Header], Any], **tensors: Any) -> Path:
    state, metadata = read_tensors(saved)
    header = json.loads(metadata["alt_model"])
    text = change(header)
    header = json.dumps(header) if not isinstance(text, str) else text
    for name, tensor in tensors.items():
        state[name.replace("__", ".")] = tensor
    safetensors.torch.save_file(state, path / "edited.safetensors", {"alt_model": header})
    return path / "edited.safetensors"


def put(group: str, **values: Any) -> Callable[[Header], Any]:
    return lambda header: header[group].update(values)


def put_whole(**values: Any) -> Callable[[Header], Any]:
    return lambda header: header.update(values)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("tower", heads=5), "describes a model that cannot be built"),
        (put("tower", patch_size=[0, 0]), "describes a model that cannot be built"),
        (put("tower", colour=1), "describes a model that cannot be built"),
        (put("tower", width=-3), "describes a model that cannot be built"),
        (put("tower", mlp_ratio=float("inf")), "describes a model that cannot be built"),
        (put("tower", layers=10**9), r"tower\.layers is 1e\+09, and the file has \d+ tensors"),
        (put("config", layers=10**7), r"config\.layers is 1e\+07, and the file has \d+ tensors"),
        (put("config", frames=10**9), "a clip of it: it takes .* MiB in memory, more than the limit"),
        (put("config", frames="many"), "cannot be built .frames must be a whole number"),
        (put("config", r=10**9), "."),
        (put_whole(tower=1.5), "its description has no valid tower"),
        (put_whole(config=None), "its description has no valid config"),
        (put_whole(family=["alt"]), "its description has no valid family"),
        (put_whole(family="os"), "its description has no valid family"),
        (put_whole(host="subprocess"), "host: expected one of"),
        (put_whole(classes=["a", "b"]), "it names 2 classes, and its head has 3"),
        (put_whole(classes=["a"] * 9), "it names 9 classes, and its head has 3"),
        (put_whole(classes=[1, 2, 3]), "its description has no valid classes"),
        (put_whole(classes=["a", "b", "\ud800"]), "its description has no valid classes"),
        (put_whole(texts={"backbone": "mini"}), "its description has no valid texts"),
        (put_whole(texts={**TEXTS, "templates": ["no place for a name"]}), "its description has no valid texts"),
        (put_whole(texts={**TEXTS, "pretrained": ["a"]}), "its description has no valid texts"),
        (put_whole(corpus=[["cup", "", "object", ""]]), "it names 1 entities, and has tensors of 2"),
        (put_whole(corpus=[["cup", "", "thing", ""], ["box", "", "object", ""]]), "categories must be of"),
        (put_whole(corpus=["cup", "box"]), "its description has no valid corpus"),
        (lambda header: "[" * 100_000, "not valid JSON"),
        (lambda header: "[]", "its description is no group of fields"),
    ],
)
def test_a_description_that_does_not_fit_is_one_sentence(
    saved: Path, tmp_path: Path, change: Callable[[Header], Any], says: str
) -> None:
    """Kind: model headers. Sizes are compared with the tensors before anything is built from them."""
    path = edited(saved, tmp_path, change)
    if says == ".":  # tokens merged per block are clipped, which is told where the model runs
        load_model(path)
        return
    with pytest.raises(ValueError, match=says) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_tensors_that_do_not_fit_are_named(saved: Path, tmp_path: Path) -> None:
    state, _ = read_tensors(saved)
    name = next(name for name in state if name.endswith("ln_post.weight"))
    key = name.replace(".", "__")
    for tensor, says in (
        (torch.zeros(3), f"{name} is \\[3\\]"),
        (torch.zeros(state[name].shape, dtype=torch.int8), f"{name} is torch.int8"),
        (torch.zeros(state[name].shape, dtype=torch.float8_e4m3fn), f"{name} is torch.float8_e4m3fn"),
    ):
        with pytest.raises(ValueError, match=says):
            load_model(edited(saved, tmp_path, lambda header: None, **{key: tensor}))
    with pytest.raises(ValueError, match="has an unknown tensor 'extra'"):
        load_model(edited(saved, tmp_path, lambda header: None, extra=torch.zeros(1)))


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "local-dir:/etc", "roberta-ViT-B-32", "nllb-clip-base"])
def test_a_file_decides_no_download_and_no_other_file(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Kind: open_clip reads a folder or asks the Hub for such names. The tower is built from its sizes instead."""

    def refuse(*args: Any, **options: Any) -> Any:
        raise AssertionError("open_clip was asked")

    path = edited(saved, tmp_path, put("config", backbone=name))
    monkeypatch.setattr(open_clip, "create_model", refuse)
    monkeypatch.setattr(open_clip.factory, "_get_hf_config", refuse)
    model = load_model(path)
    assert model.config.backbone == name
    with pytest.raises(ValueError, match="open_clip has no model"):
        load_backbone(model, "openai")


# --- TorchScript ---


EVIL = """
import torch
from typing import Tuple
class Evil(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.zeros(1))
    @torch.jit.export
    def __getstate__(self):
        return (self.a, self.training)
    @torch.jit.export
    def __setstate__(self, state: Tuple[torch.Tensor, bool]):
        self.a = state[0]
        self.training = state[1]
        torch.ops.aten.save(state[0], "TARGET")
    def forward(self, x):
        return x
"""


@pytest.mark.filterwarnings("ignore")
def test_code_of_an_archive_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kind: ``torch.jit.load`` runs the archive's ``__setstate__``. Only its tensors are read, in every reader."""
    target = tmp_path / "written"
    (tmp_path / "evil_module.py").write_text(EVIL.replace("TARGET", str(target)))
    monkeypatch.syspath_prepend(str(tmp_path))
    from evil_module import Evil  # type: ignore[import-not-found]

    torch.jit.script(Evil()).save(str(tmp_path / "weights.pt"))
    sys.modules.pop("evil_module")
    target.unlink(missing_ok=True)
    with pytest.raises(ValueError, match="holds no weights of a CLIP image tower"):
        load_backbone(tiny_alt(dtype=torch.float32), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="is not of ViT-S-32-alt: it has no tensor"):
        build_clip("ViT-S-32-alt", tmp_path / "weights.pt")
    assert not target.exists()


class Tree(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2)
        self.b = nn.ModuleList([nn.LayerNorm(3), nn.Linear(2, 2, bias=False)])
        self.register_buffer("short", torch.arange(4).half())
        self.register_buffer("tied", self.b[1].weight.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x)


@pytest.mark.filterwarnings("ignore")
def test_the_tensors_of_an_archive_are_its_state_dict(tmp_path: Path) -> None:
    tree = Tree()
    torch.jit.trace(tree, torch.zeros(1, 3)).save(str(tmp_path / "a.pt"))
    found = read_clip_weights(tmp_path / "a.pt")
    expected = tree.state_dict()
    assert found.tensors.keys() == expected.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.items())
    assert found.quick_gelu is True


# --- prefixes and activation ---


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_prefixes_of_wrappers_are_passed_over(tmp_path: Path, prefix: str, suffix: str) -> None:
    """Kind: checkpoints of compiled and distributed models, in both formats and in the middle of a name."""
    state = {f"{prefix}visual.conv1.weight": torch.ones(2), "visual._orig_mod.ln.bias": torch.zeros(2)}
    path = tmp_path / f"a{suffix}"
    torch.save({"state_dict": state}, path) if suffix == ".pt" else safetensors.torch.save_file(state, path)
    assert set(read_clip_weights(path).tensors) == {"visual.conv1.weight", "visual.ln.bias"}
    torch.save({"a": torch.ones(1), "module.a": torch.zeros(1)}, tmp_path / "twice.pt")
    with pytest.raises(ValueError, match="two of its tensors are named 'a'"):
        read_clip_weights(tmp_path / "twice.pt")


def test_a_model_with_a_compiled_part_is_saved_under_plain_names(tmp_path: Path) -> None:
    model = tiny_alt()
    compiled = nn.Module()
    compiled._orig_mod = model.head  # as torch.compile names it
    model.head = compiled  # type: ignore[assignment]
    loaded = load_model(save_model(model, tmp_path / "model.safetensors"))
    assert not any("_orig_mod" in name for name in loaded.state_dict())


def test_a_file_that_does_not_tell_its_activation_is_warned_of(tmp_path: Path) -> None:
    """Kind: QuickGELU weights by path were run with GELU without a word."""
    names = open_clip.create_model("ViT-S-32-alt", pretrained=None, device="meta").state_dict()
    torch.save({name: torch.zeros(tensor.shape) for name, tensor in names.items()}, tmp_path / "a.pt")
    with pytest.warns(UserWarning, match=r"does not tell .* QuickGELU .*; GELU is taken\. quick_gelu=False says"):
        assert build_clip("ViT-S-32-alt", tmp_path / "a.pt").quick_gelu is False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build_clip("ViT-S-32-alt", tmp_path / "a.pt", quick_gelu=True).quick_gelu is True


def test_a_set_of_classes_has_no_order() -> None:
    """Kind: an order that Python does not define decided which column of the logits a class has."""
    model = tiny_alt()
    with pytest.raises(TypeError, match="names: expected a list or another sequence, got a set"):
        model.set_classes({"a", "b"}, torch.zeros(2, model.width))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="classes: expected a list or another sequence, got a set"):
        alt.create_model("alt-mini", classes=frozenset("ab"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="classes: expected a list"):
        VideoMetrics({"a", "b"})  # type: ignore[arg-type]
