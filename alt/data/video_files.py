"""Video files, by PyAV (the extra ``video``): frames by their numbers, without decoding the file from its beginning.

Opening reads the file's packets once and decodes none. Their presentation times, sorted, number the frames, so
B-frames, variable rates and edit lists need no further care. A frame is decoded from the last key frame before it, and
recognised by its time. Where times do not tell (containers that are known for it, missing or equal times), and where a
key frame proves to be none, frames are counted from the beginning instead.

Rotation by a quarter of a turn, as phones record it, is applied. Interlaced frames are left as they are coded, pixels
are not rescaled to a square shape, and more than 8 bits are rounded to 8, without tone mapping.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from alt.files import LIMIT_VARIABLE, decoded_limit, describe_error, require_file

from .container_sizes import find_missing_bytes
from .video import ClipError, Video, check_size

__all__ = ["VIDEOS", "VideoFile"]

VIDEOS = {".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv"}

# Demuxers that read one file alone. FFmpeg would follow the names in playlists, whatever the ending of their file.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg"
_TIMED = ("mov,mp4", "matroska", "avi", "flv")  # every packet of a frame has its time
_PIXEL_SHARE = 24  # a decoder keeps up to 16 frames of 1.5 bytes per pixel
_PACKED = 8  # bytes of an MPEG-4 packet that only repeats a frame packed into an earlier one


class _Packet(NamedTuple):
    """time: of presentation, None if it is not told. start: decoding can begin here. shown: it becomes a frame."""

    time: int | None
    start: bool
    shown: bool
    size: int


class VideoFile(Video):
    """The first video stream of a file.

    Decoders conceal most damage inside a picture, and so does :meth:`read`: it fails for frames that a decoder does not
    return or marks as damaged.

    Args:
        path: of the file.
        strict: for :meth:`decode_all`. Decoders report what they otherwise conceal, and a file that is broken off is
            opened all the same.

    Attributes:
        pixels: of a frame. problem: of a strict video: what :meth:`__init__` would else have raised, or None.

    Raises:
        ClipError: it is empty, broken off, has no video, or is too large.
    """

    def __init__(self, path: Path, strict: bool = False) -> None:
        try:
            import av
            import av.logging
        except ModuleNotFoundError:
            raise ClipError(f"{path}: videos need PyAV; install it with: pip install 'alt-kernels[video]'") from None
        self._av: Any = av
        self.path, self._strict = path, strict
        self.problem: str | None = None
        self._container: Any = None
        try:
            if require_file(path).stat().st_size == 0:
                raise ClipError(f"{path}: it is empty")
            missing = find_missing_bytes(path)
            if missing:
                self._refuse(f"it is broken off, {missing} bytes are missing at its end")
            self._open()
            self._packets = list(self._read_packets())
            self._number_frames()
            rate = self._stream.average_rate
        except ClipError:
            self.close()
            raise
        except Exception as error:  # FFmpeg and PyAV raise a dozen kinds on damaged bytes
            self.close()
            raise ClipError(f"{path}: not a readable video ({_describe(error)})") from None
        super().__init__(path, self._count, float(rate) if rate else None)

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    # --- opening ---

    def _refuse(self, problem: str) -> None:
        if not self._strict:
            raise ClipError(f"{self.path}: {problem}")
        self.problem = self.problem or problem

    def _open(self) -> None:
        """Opens the file at its beginning."""
        self.close()
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
        self._container = self._av.open(f"file:{self.path}", options=options, metadata_errors="replace")
        cover = self._av.stream.Disposition.attached_pic
        streams = [s for s in self._container.streams.video if not s.disposition & cover]
        if not streams:
            raise ClipError(f"{self.path}: there is no video in it")
        self._stream = streams[0]
        context, limit = self._stream.codec_context, decoded_limit() // _PIXEL_SHARE
        if context is None:
            raise ClipError(f"{self.path}: there is no decoder for it")
        if context.width * context.height > limit:
            raise ClipError(
                f"{self.path}: frames of at most {limit / 1e6:.1f} million pixels are expected, these have "
                f"{context.width * context.height / 1e6:.1f}; if you trust it, set {LIMIT_VARIABLE}"
            )
        self.pixels: int = context.width * context.height
        context.options = {"max_pixels": str(limit), **({"err_detect": "explode"} if self._strict else {})}
        # One thread, here and in conversion: loading processes work side by side, and a process that is forked while
        # threads of its parent belong to an open video would wait for them forever.
        context.thread_type, context.thread_count = "NONE", 1
        self._reformatter = self._av.video.reformatter.VideoReformatter()

    def _read_packets(self) -> Iterator[_Packet]:
        old = self._stream.codec_context.name in ("vp8", "libvpx")
        for packet in self._container.demux(self._stream):
            if packet.size == 0:  # the end
                continue
            if packet.is_corrupt:
                self._refuse("it is broken off or damaged")
            shown = not packet.is_discard and not (old and not bytes(packet)[0] & 16)
            yield _Packet(packet.pts, packet.is_keyframe, shown, packet.size)

    def _number_frames(self) -> None:
        """Sorts the times of the frames, and decides whether they tell the frames apart."""
        shown = [packet for packet in self._packets if packet.shown]
        if not shown:
            raise ClipError(f"{self.path}: no frames in it")
        times = [packet.time for packet in shown if packet.time is not None]
        packed = self._stream.codec_context.name == "mpeg4" and any(packet.size < _PACKED for packet in shown)
        form = self._container.format.name
        self._by_time = len(set(times)) == len(shown) and form.startswith(_TIMED) and not packed
        self._times = sorted(times)
        self._count = len(shown)
        self._order = {packet.time: i for i, packet in enumerate(self._packets) if packet.time is not None}
        self._starts = sorted((p.time, i) for i, p in enumerate(self._packets) if p.start and p.time is not None)
        if not self._by_time:
            self._count = sum(1 for _ in self._decode_from_start())
            if self._count == 0:
                raise ClipError(f"{self.path}: no frames in it")

    def decode_all(self) -> tuple[int, str | None]:
        """Decodes the whole file and keeps nothing: (frames that came whole, the decoder's first complaint or None)."""
        logging, whole, first = self._av.logging, 0, None
        level, skip = logging.get_level(), logging.get_skip_repeated()
        logging.set_level(logging.ERROR)
        logging.set_skip_repeated(
            False
        )  # otherwise the complaint of the file before would not be said again of this one
        try:
            with logging.Capture(local=True) as complaints:
                self._open()
                for packet in self._container.demux(self._stream):
                    try:
                        whole += sum(not frame.is_corrupt for frame in packet.decode())
                    except self._av.FFmpegError as error:
                        first = first or error.strerror
            texts = [text.strip() for severity, _, text in complaints if severity <= logging.ERROR]
            told = next((text for text in texts if text and not text.startswith("(repeated")), None)
        finally:
            logging.set_level(level)
            logging.set_skip_repeated(skip)
        return whole, told or first

    # --- decoding ---

    def _read(self, places: Sequence[int]) -> Tensor:
        try:
            if self._by_time:
                found = self._read_by_time(places)
                if found is not None:
                    return found
                # A key frame was none, or a packet is damaged: count from the beginning.
                self._by_time = self.steady = False
            return self._read_in_order(places)
        except ClipError:
            raise
        except Exception as error:
            raise ClipError(f"{self.path}: it cannot be decoded ({_describe(error)})") from None

    def _read_in_order(self, places: Sequence[int]) -> Tensor:
        """Returns frames by counting what the decoder returns."""
        frames, rows = _Frames(self, len(places)), iter(places)
        wanted, number = next(rows), -1
        for number, frame in enumerate(self._decode_from_start()):
            if number == wanted:
                if frame.is_corrupt:
                    raise ClipError(f"{self.path}: frame {number} is damaged")
                frames.add(frame)
                wanted = next(rows, -1)
                if wanted < 0:
                    return frames.stack()
        raise ClipError(f"{self.path}: only {number + 1} of its {self.frames} frames can be decoded")

    def _decode_from_start(self) -> Iterator[Any]:
        self._open()
        for packet in self._container.demux(self._stream):
            yield from packet.decode()

    def _read_by_time(self, places: Sequence[int]) -> Tensor | None:
        """Returns frames by their times, or None if these or the key frames do not lead to one."""
        frames = _Frames(self, len(places))
        cursor = _Cursor(self)
        try:
            for place in places:
                frame = cursor.find(self._times[place])
                if frame is None or frame.is_corrupt:
                    return None
                frames.add(frame)
        except self._av.FFmpegError:
            return None
        finally:
            cursor.close()
        return frames.stack()


def _describe(error: Exception) -> str:
    """Returns FFmpeg's own words, without the number and the function that PyAV adds."""
    return getattr(error, "strerror", None) or describe_error(error)


class _Cursor:
    """A place in a video, which moves forward by decoding or to a key frame."""

    def __init__(self, video: VideoFile) -> None:
        self._video = video
        self._decoder: Iterator[Any] | None = None
        self._at = -1  # number of the packet decoded last

    def find(self, time: int) -> Any:
        """Returns the frame of this time, later than any before it; None if the decoder does not come to it."""
        starts = self._video._starts
        place = bisect.bisect_right(starts, (time, len(self._video._packets))) - 1
        start, order = starts[place] if place >= 0 else (None, 0)
        key = None
        if self._decoder is None or order > self._at:
            key = start if order else None
            self._decoder = self._decode_from(key, order)
        for frame in self._decoder:
            if frame.pts is None or frame.pts > time:
                return None
            if key is not None:  # the first frame must be the key frame; frames before it lack what they refer to
                if frame.pts > key or (frame.pts == key and not frame.key_frame):
                    return None
                key = None if frame.pts == key else key
            if frame.pts == time:
                return frame
        return None

    def close(self) -> None:
        """Lets go of the decoder, which refers to this object."""
        self._decoder = None

    def _decode_from(self, key: int | None, order: int) -> Iterator[Any]:
        """Decodes from a key frame, or from the beginning; nothing if the file's own index leads to a later place."""
        video = self._video
        if key is None:
            video._open()
        else:
            video._container.seek(key, stream=video._stream, backward=True, any_frame=False)
        self._at = -1
        for packet in video._container.demux(video._stream):
            number = video._order.get(packet.pts) if packet.size else len(video._packets)
            if number is None or (self._at < 0 and number > order):
                return
            self._at = number
            yield from packet.decode()


class _Frames:
    """Frames as they are decoded, in memory that is taken once."""

    def __init__(self, video: VideoFile, count: int) -> None:
        self._video, self._count, self._row = video, count, 0
        self._frames: Tensor | None = None

    def add(self, frame: Any) -> None:
        path = self._video.path
        if self._frames is None:
            check_size(self._count * 3 * frame.height * frame.width, path)
        picture = self._video._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        picture = np.rot90(picture, round(frame.rotation / 90) % 4)
        height, width = picture.shape[:2]
        if self._frames is None:
            self._frames = torch.empty(self._count, 3, height, width, dtype=torch.uint8)
        if (height, width) != self._frames.shape[2:]:
            first_h, first_w = self._frames.shape[2:]
            raise ClipError(
                f"{path}: frames of one size are expected, one is {height} x {width}, not {first_h} x {first_w}"
            )
        self._frames[self._row] = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)
        self._row += 1

    def stack(self) -> Tensor:
        assert self._frames is not None
        return self._frames
