"""The kinds of input: how a valid one is made, how it is changed, and which reader gets it."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from .mutate import mutate_bytes, mutate_text

__all__ = ["KINDS", "Kind"]

Change = Callable[[bytes, random.Random], bytes]


class Kind(NamedTuple):
    """make: the valid inputs, by file name. read: reads the file. change: one input from a valid one."""

    make: Callable[[Path], dict[str, bytes]]
    read: Callable[[Path], Any]
    change: Change = mutate_bytes


def _text(data: bytes, rng: random.Random) -> bytes:
    return mutate_text(data.decode("utf-8"), rng)


def _saved(write: Callable[[Any], Any]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def _picture(kind: str, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return _saved(lambda file: Image.fromarray(pixels).convert(mode).save(file, kind))


def _pictures(folder: Path) -> dict[str, bytes]:
    deep = Image.fromarray(np.arange(192, dtype=np.uint16).reshape(12, 16) * 300)
    return {
        "0.png": _picture("PNG"),
        "1.jpg": _picture("JPEG"),
        "2.bmp": _picture("BMP"),
        "3.webp": _picture("WEBP"),
        "4.png": _saved(lambda file: deep.save(file, "PNG")),
        "5.png": _picture("PNG", "P"),
    }


def _archives(folder: Path) -> dict[str, bytes]:
    def write(file: Any, method: int) -> None:
        with zipfile.ZipFile(file, "w", method) as archive:
            for i in range(3):
                archive.writestr(f"clip/{i}.png", _picture("PNG"))

    return {
        "stored.zip": _saved(lambda file: write(file, zipfile.ZIP_STORED)),
        "deflated.zip": _saved(lambda file: write(file, zipfile.ZIP_DEFLATED)),
    }


def _arrays(folder: Path) -> dict[str, bytes]:
    frames = np.random.default_rng(1).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    tensor = torch.from_numpy(frames)
    return {
        "a.npy": _saved(lambda file: np.save(file, frames)),
        "b.npy": _saved(lambda file: np.save(file, np.asfortranarray(frames / 255))),
        "c.npz": _saved(lambda file: np.savez_compressed(file, frames=frames)),
        "d.npz": _saved(lambda file: np.savez(file, frames=frames)),
        "e.pt": _saved(lambda file: torch.save(tensor, file)),
        "f.pt": _saved(lambda file: torch.save(tensor, file, _use_new_zipfile_serialization=False)),
    }


def _small_model() -> Any:
    from tests.models.tiny_models import tiny_alt

    model = tiny_alt(torch.float32)
    from alt.corpus import Corpus

    count = model.alignment.entities.shape[0]
    names = tuple(f"thing {i}" for i in range(count))
    model.set_corpus(Corpus(names, ("",) * count, ("object",) * count, embeddings=torch.randn(count, model.width)))
    return model


def _models(folder: Path) -> dict[str, bytes]:
    from alt.models import save_model

    path = save_model(_small_model(), folder / "model.safetensors")
    return {"model.safetensors": path.read_bytes()}


def change_header(data: bytes, rng: random.Random) -> bytes:
    """Changes the JSON of a safetensors file, half of the time as a text of valid length, or else any bytes."""
    if rng.random() < 0.4:
        return mutate_bytes(data, rng)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    about = header["__metadata__"]
    if rng.random() < 0.8 and about:
        key = rng.choice(sorted(about))
        about[key] = mutate_text(about[key], rng).decode("utf-8", "replace")
        text = json.dumps(header).encode()
    else:
        text = mutate_text(json.dumps(header), rng)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _weights(folder: Path) -> dict[str, bytes]:
    import warnings

    state = {"visual.conv1.weight": torch.randn(4, 3, 2, 2), "logit_scale": torch.tensor(1.0)}
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(net, torch.zeros(1, 3))
        script = _saved(lambda file: torch.jit.save(traced, file))
    return {
        "a.pt": _saved(lambda file: torch.save({"state_dict": state, "epoch": 3}, file)),
        "b.pt": _saved(lambda file: torch.save(state, file, _use_new_zipfile_serialization=False)),
        "c.pt": script,
    }


def _small_clip(folder: Path) -> dict[str, bytes]:
    from alt.entityworld.mini_clip import MiniClip, MiniClipConfig, WordTokenizer, build_mini_clip, save_mini_clip

    config = MiniClipConfig.preset("tiny")
    words = WordTokenizer(["cup", "box"], config.context_length)
    mini = MiniClip(build_mini_clip(config, words.vocab_size, seed=0), words, config, {})
    return {"mini.safetensors": save_mini_clip(mini, folder / "mini.safetensors").read_bytes()}


def _checkpoints(folder: Path) -> dict[str, bytes]:
    content = {
        "alt": {"config": {"name": "tiny"}},
        "global_step": 3,
        "state_dict": {"model.a": torch.randn(5)},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}}],
    }
    from alt.train.checkpoint import AtomicCheckpointIO

    AtomicCheckpointIO().save_checkpoint(content, folder / "last.ckpt")
    return {"last.ckpt": (folder / "last.ckpt").read_bytes()}


def _lists(folder: Path) -> dict[str, bytes]:
    (folder / "a").mkdir(exist_ok=True)
    np.save(folder / "b c.npy", np.zeros((2, 3, 4, 4), np.uint8))
    return {
        "list.txt": b"# clips\na 0\nb c.npy 1\na 120 2\na 1 2 0\na;1;1;0\nb c.npy lifting cup\n",
        "labels.csv": b'id,name\n0,pushing box\n1,"lifting cup, high"\n2,lifting cup\n',
    }


def _read_lists(path: Path) -> Any:
    from alt.data.clips import ClipFiles, read_labels

    if path.suffix == ".csv":
        return read_labels(path)
    return ClipFiles(path)


def _configurations(folder: Path) -> dict[str, bytes]:
    from alt.train.config import load_config

    anchors = (
        "base: entity-world-cpu\nseed: &n 3\ndata: {shots_seed: *n, batch_size: 8}\nmodel:\n  options: {tau: 0.5}\n"
    )
    return {"whole.yaml": load_config("entity-world-cpu").to_yaml().encode(), "anchors.yaml": anchors.encode()}


def _corpora(folder: Path) -> dict[str, bytes]:
    from alt.corpus import Corpus

    corpus = Corpus(("cup", "box"), ("a cup", ""), ("object", "scene"), ("x", ""), torch.randn(2, 4))
    path = corpus.save(folder / "c.json")
    return {"c.json": path.read_bytes()}


def _videos(folder: Path) -> dict[str, bytes]:
    from tests.data.encoded import encode

    kinds = {
        "a.mp4": ("libx264", {"g": "12", "bf": "2"}),
        "b.avi": ("mpeg4", {"g": "12", "bf": "2"}),
        "c.webm": ("libvpx-vp9", {"g": "12", "deadline": "realtime", "cpu-used": "8"}),
        "d.mkv": ("libx265", {"x265-params": "keyint=12:log-level=none"}),
        "e.ts": ("mpeg2video", {"g": "12", "bf": "2"}),
    }
    return {n: encode(folder / n, codec, 36, options).read_bytes() for n, (codec, options) in kinds.items()}


def change_video(data: bytes, rng: random.Random) -> bytes:
    """Changes the middle of a file, which leaves most of it to be decoded, or else any bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    begin = len(data) // 4
    cut = rng.random() < 0.2
    middle = data[begin:-begin] if not cut else data[begin : rng.randrange(begin, len(data))]
    return data[:begin] + mutate_bytes(middle, rng) + (b"" if cut else data[-begin:])


def _video(path: Path) -> Any:
    """Reads eight frames as a run does, and checks the whole file; what only the check finds is refused as well."""
    import contextlib

    from alt.data.check import check_clip
    from alt.data.clip_lists import Entry
    from alt.data.sampling import sample_test
    from alt.data.video import ClipError
    from alt.data.videos import open_video

    with contextlib.suppress(ClipError), open_video(path) as video:
        video.read(sample_test(video.frames, 8))
    problem = check_clip(Entry(path, 0)).problem
    if problem is not None:
        raise ClipError(f"{path}: {problem}")


def _clip(path: Path) -> Any:
    from alt.data.clips import read_clip

    return read_clip(path)


def _folder(path: Path) -> Any:
    return _clip(path.parent)


def _model(path: Path) -> Any:
    from alt.models import load_model

    return load_model(path)


def _clip_weights(path: Path) -> Any:
    from alt.models.clip_file import read_clip_weights

    return read_clip_weights(path)


def _mini(path: Path) -> Any:
    from alt.entityworld.mini_clip import load_mini_clip

    return load_mini_clip(path)


def _checkpoint(path: Path) -> Any:
    from alt.train.checkpoint import read_checkpoint

    return read_checkpoint(path)


def _configuration(path: Path) -> Any:
    from alt.train.config import load_config

    return load_config(path)


def _corpus(path: Path) -> Any:
    from alt.corpus import Corpus

    return Corpus.load(path)


KINDS: dict[str, Kind] = {
    "pictures": Kind(_pictures, _folder),
    "archives": Kind(_archives, _clip),
    "arrays": Kind(_arrays, _clip),
    "videos": Kind(_videos, _video, change_video),
    "models": Kind(_models, _model, change_header),
    "weights": Kind(_weights, _clip_weights),
    "small CLIP": Kind(_small_clip, _mini, change_header),
    "checkpoints": Kind(_checkpoints, _checkpoint),
    "lists": Kind(_lists, _read_lists, _text),
    "configurations": Kind(_configurations, _configuration, _text),
    "corpora": Kind(_corpora, _corpus, _text),
}
