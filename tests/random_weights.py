"""Random weights where a library looks for its downloads, so that code of the documentation runs as it is written.

Nothing but the download is replaced. Repositories of the Hugging Face Hub lie in an empty cache, which transformers and
timm read offline; torchvision finds its checkpoints in the folder of ``torch.hub``; open_clip and OpenAI's clip ask a
function for a file. Models of transformers have two small layers, as their configuration is part of the repository. The
other libraries fix the sizes by the name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import transformers as hf
from safetensors.torch import save_file
from tokenizers import pre_tokenizers

__all__ = ["Downloads", "publish_clip"]

_REVISION = "0" * 40
_LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


class Downloads:
    """Answers the libraries' downloads with random weights, which are made when they are asked for the first time.

    Args:
        folder: of all files. It may serve several tests.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[str, Path] = {}

    def replace(self, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        """Replaces downloads for one test. ``text`` is the code that will run; what it names is made here."""
        import huggingface_hub.constants as hub

        cache = self.folder / "hub"
        for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE"):
            monkeypatch.setattr(hub, name, True if name.endswith("OFFLINE") else str(cache))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setenv("TORCH_HOME", str(self.folder / "torch"))
        monkeypatch.setattr(open_clip.factory, "download_pretrained", self.open_clip_file)
        for repository, publish in REPOSITORIES.items():
            if repository in text and repository not in self.made:
                publish(self._snapshot(repository))
        for model in re.findall(r'timm\.create_model\("([\w.]+)", pretrained=True', text):
            self._publish_timm(model)
        if "torchvision.models" in text:
            self._publish_torchvision()
        if "import clip" in text:
            module = pytest.importorskip(
                "clip.clip", reason="OpenAI's clip is not installed (pip install clip-anytorch)"
            )
            monkeypatch.setattr(module, "_download", lambda url, root: str(self._openai_file()))

    def open_clip_file(self, entry: dict[str, Any], *_: Any, **__: Any) -> str:
        """Returns a file of weights of the model to which open_clip's entry belongs."""
        url = entry["url"]
        if url not in self.made:
            found = [
                model for model, tag in open_clip.list_pretrained()
                if open_clip.get_pretrained_cfg(model, tag).get("url") == url
            ]  # fmt: skip
            state = open_clip.create_model(found[0]).state_dict()
            self.made[url] = self.folder / f"{len(self.made)}.pt"
            torch.save({key: value.half() for key, value in state.items()}, self.made[url])
        return str(self.made[url])

    def _snapshot(self, repository: str) -> Path:
        """Returns the folder of a repository in the Hub's cache."""
        home = self.folder / "hub" / f"models--{repository.replace('/', '--')}"
        self.made[repository] = home / "snapshots" / _REVISION
        self.made[repository].mkdir(parents=True)
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text(_REVISION)
        return self.made[repository]

    def _publish_timm(self, name: str) -> None:
        config = timm.get_pretrained_cfg(name)
        repository = config.hf_hub_id if config.hf_hub_id != "timm/" else f"timm/{config.architecture}.{config.tag}"
        if repository not in self.made:
            save_file(timm.create_model(name).state_dict(), self._snapshot(repository) / "model.safetensors")

    def _publish_torchvision(self) -> None:
        from torchvision.models import ViT_B_16_Weights, vit_b_16

        url = ViT_B_16_Weights.DEFAULT.url
        if url not in self.made:
            self.made[url] = self.folder / "torch" / "hub" / "checkpoints" / url.rsplit("/", 1)[1]
            self.made[url].parent.mkdir(parents=True)
            torch.save(vit_b_16().state_dict(), self.made[url])

    def _openai_file(self) -> Path:
        import clip.model

        if "openai" not in self.made:
            self.made["openai"] = self.folder / "openai.pt"
            state = clip.model.CLIP(64, 224, 2, 64, 32, 77, 49408, 64, 1, 1).state_dict()
            torch.save(state, self.made["openai"])
        return self.made["openai"]


# --- repositories of transformers ---


def byte_tokenizer(**options: Any) -> Any:
    """Returns CLIP's tokenizer without merges: one token per letter, of 514 with those of start and end."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return hf.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77, **options)


def publish_clip(folder: Path, image_size: int = 224) -> None:
    vision = {**_LAYERS, "image_size": image_size, "patch_size": image_size // 7}
    text = {**_TEXT, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513, "vocab_size": 514}
    hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    clip_images(image_size).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def clip_images(size: int) -> Any:
    return hf.CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def publish_siglip(folder: Path) -> None:
    text = {**_TEXT, "vocab_size": 64, "projection_size": 32}
    vision = {**_LAYERS, "image_size": 224, "patch_size": 16}
    hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    hf.SiglipImageProcessor().save_pretrained(folder)


def publish_siglip2(folder: Path) -> None:
    text = {**_TEXT, "vocab_size": 64, "projection_size": 32}
    vision = {**_LAYERS, "patch_size": 16, "num_patches": 256}
    hf.Siglip2Model(hf.Siglip2Config(text_config=text, vision_config=vision)).save_pretrained(folder)
    hf.Siglip2ImageProcessor().save_pretrained(folder)


def publish_vit(folder: Path) -> None:
    hf.ViTForImageClassification(hf.ViTConfig(**_LAYERS)).save_pretrained(folder)
    hf.ViTImageProcessor().save_pretrained(folder)


def publish_dinov2(folder: Path) -> None:
    config = hf.Dinov2WithRegistersConfig(**_LAYERS, image_size=518, patch_size=14)
    hf.Dinov2WithRegistersModel(config).save_pretrained(folder)
    hf.BitImageProcessor().save_pretrained(folder)


def publish_dinov3(folder: Path) -> None:
    config = hf.DINOv3ViTConfig(**_LAYERS, image_size=224, patch_size=16, num_register_tokens=4)
    hf.DINOv3ViTModel(config).save_pretrained(folder)
    hf.DINOv3ViTImageProcessor().save_pretrained(folder)


def publish_llava(folder: Path) -> None:
    vision = hf.CLIPVisionConfig(**{**_LAYERS, "num_hidden_layers": 4}, image_size=336, patch_size=28)
    text = hf.LlamaConfig(**_TEXT, vocab_size=515, bos_token_id=512, eos_token_id=513, pad_token_id=513)
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=514, vision_feature_layer=-2)
    hf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = byte_tokenizer(extra_special_tokens={"image_token": "<image>"})
    options = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    hf.LlavaProcessor(clip_images(336), tokenizer, patch_size=28, **options).save_pretrained(folder)


REPOSITORIES: dict[str, Callable[[Path], None]] = {
    "openai/clip-vit-base-patch32": publish_clip,
    "google/siglip2-base-patch16-224": publish_siglip,
    "google/siglip2-base-patch16-naflex": publish_siglip2,
    "google/vit-base-patch16-224": publish_vit,
    "facebook/dinov2-with-registers-base": publish_dinov2,
    "facebook/dinov3-vits16-pretrain-lvd1689m": publish_dinov3,
    "llava-hf/llava-1.5-7b-hf": publish_llava,
}
