"""Videos that the tests encode: the number of every frame is drawn in its picture as sixteen black or white blocks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

SIDE = 16  # of a block in pixels: survives any codec at its default quality


def draw(number: int, deep: bool = False) -> np.ndarray:
    """A picture of 4 x 4 blocks, the number's bits, 64 high and 80 wide: the right edge is grey."""
    bits = np.array([(number >> i) & 1 for i in range(16)], np.uint8).reshape(4, 4)
    picture = np.full((4 * SIDE, 5 * SIDE, 3), 128, np.uint8)
    picture[:, : 4 * SIDE] = np.kron(bits, np.ones((SIDE, SIDE), np.uint8))[..., None] * 235 + 10
    return picture


def numbers(frames: torch.Tensor, turns: int = 0) -> list[int]:
    """The numbers in decoded frames ``[n, 3, H, W]``; ``turns``: quarter turns, counter-clockwise, that undo theirs."""
    found = []
    for frame in torch.rot90(frames, turns, (2, 3)).float().mean(1):
        assert frame.shape == (4 * SIDE, 5 * SIDE)
        blocks = frame[:, : 4 * SIDE].reshape(4, SIDE, 4, SIDE)[:, 4:-4, :, 4:-4].mean((1, 3))
        assert bool(((blocks < 70) | (blocks > 180)).all()), blocks
        found.append(int(((blocks > 128).flatten() * 2 ** torch.arange(16)).sum()))
    return found


def encode(
    path: Path,
    codec: str,
    count: int,
    options: dict[str, str] | None = None,
    *,
    rate: int = 25,
    pixels: str = "yuv420p",
    times: Sequence[int] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    """Writes ``count`` numbered frames. times: of presentation in milliseconds, for a variable rate."""
    import av

    with av.open(str(path), "w", container_options=container or {}) as file:
        stream: Any = file.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = 5 * SIDE, 4 * SIDE, pixels
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(draw(number), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def turn(path: Path, degrees: int) -> Path:
    """Writes a rotation into the track header of an MP4 file, as phones do: the picture is shown turned clockwise."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd")
    version = data[at + 4]
    matrix = at + 4 + (52 if version else 40)
    one, minus = 0x10000, -0x10000
    parts = {90: (0, one, minus, 0), 180: (minus, 0, 0, minus), 270: (0, minus, one, 0)}[degrees]
    a, b, c, d = parts
    values = (a, b, 0, c, d, 0, 0, 0, 0x40000000)
    data[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in values)
    path.write_bytes(data)
    return path


def encode_audio(path: Path) -> Path:
    """Writes a tenth of a second of silence and no video."""
    import av

    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def png(picture: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()
