"""The tables of the ALT paper as it prints them: rows, columns, the numbers of both versions, and our configurations.

The ICLR version (anonymous, full text) and the CVPR 2024 version print other accuracies and number their tables
differently; of the CVPR version the abstract and the supplement are known. A cell without a configuration is a rival's,
or one that this package does not run. Nothing here was trained on Kinetics. The tables of X-CLIP and MAXI are in
:mod:`alt.xclip_tables` and :mod:`alt.maxi_tables`.

Source: arXiv 2311.15619, both versions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from . import paper

__all__ = ["TABLES", "Cell", "PaperTable"]


Metric = Literal["top1", "top5", "mean_average_precision"]


class Cell(NamedTuple):
    """iclr, cvpr: percent in the versions of the ALT paper, None where one prints nothing. configuration: its shipped
    name, None: not run here. std: of the ICLR version's number, or of ``printed``. metric: of the results of alt eval.
    printed: percent in another paper's table."""

    iclr: float | None = None
    cvpr: float | None = None
    configuration: str | None = None
    std: float | None = None
    metric: Metric = "top1"
    printed: float | None = None


class PaperTable(NamedTuple):
    """key: its name here. title: what it shows. iclr, cvpr: its number in a version, None where it has none.
    columns: of accuracies. rows: name -> one cell per column. paper: whose table it is, None: ALT's. where: in that
    paper. gflops: name of a row -> cost as the paper prints it, in 1e9 multiply-accumulates: ALT's of all views,
    X-CLIP's of one."""

    key: str
    title: str
    iclr: str | None
    cvpr: str | None
    columns: tuple[str, ...]
    rows: dict[str, tuple[Cell, ...]]
    paper: str | None = None
    where: str | None = None
    gflops: Mapping[str, float] = MappingProxyType({})


def _run(iclr: float | None, cvpr: float | None, configuration: str, std: float | None = None) -> Cell:
    return Cell(iclr, cvpr, configuration, std)


def _supervised(row: str, top1: float, top5: float, cvpr: float | None = None) -> tuple[Cell, ...]:
    return Cell(top1, cvpr, row), Cell(top5, None, row, metric="top5")


def _shots(names: Sequence[str], iclr: Sequence[float], cvpr: Sequence[float | None]) -> tuple[Cell, ...]:
    return tuple(Cell(a, b, name) for a, b, name in zip(iclr, cvpr, names, strict=True))


def _few(model: str) -> list[str]:
    return [f"{model}-{data}-{shots}shot" for data in ("hmdb", "ucf") for shots in (2, 4, 8, 16)]


def _printed(*values: float | None) -> tuple[Cell, ...]:
    """Returns a rival's row of the ICLR version."""
    return tuple(Cell(value) for value in values)


def _both(value: float) -> tuple[Cell, ...]:
    """Returns a rival's row of one column, which both versions print."""
    return (Cell(value, value),)


def _spread(*values: tuple[float, float]) -> tuple[Cell, ...]:
    """Returns the same with a standard deviation for each number."""
    return tuple(Cell(value, std=std) for value, std in values)


_NONE = (None,) * 8
_ABLATION = ("K400", "HMDB-51 2-shot", "UCF-101 0-shot")


def _ablation(family: str, row: str, iclr: Sequence[float], cvpr: Sequence[float | None]) -> tuple[Cell, ...]:
    names = [f"{family}-{row}-{protocol}" for protocol in ("k400-8f", "hmdb-2shot", "ucf-zero-shot")]
    return _shots(names, iclr, cvpr)


_NOTHING = (None, None, None)

TABLES = (
    PaperTable(
        "k400",
        "Kinetics-400, frames x 1 x 3 views",
        "Table 1",
        "main text",
        ("top-1", "top-5"),
        {
            "MViTv1-B": _printed(81.2, 95.1),
            "Uniformer-B": _printed(83.0, 95.4),
            "TimeSformer-L": _printed(80.7, 94.7),
            "VideoSwin-L": _printed(83.1, 95.9),
            "ViViT-H": _printed(84.9, 95.8),
            "MTV-H": _printed(89.1, 98.2),
            "PromptingCLIP": _printed(76.9, 93.5),
            "ActionCLIP-B": _printed(83.8, 97.1),
            "ST-Adapter-L": _printed(87.2, 97.6),
            "EVL-L": _printed(87.3, 97.6),
            "AIM-L": _printed(87.5, 97.7),
            "X-CLIP-L": _printed(87.1, 97.6),
            "ALT-B/16, 8": _supervised("alt-b16-k400-8f", 83.6, 96.2),
            "ALT-B/16, 16": _supervised("alt-b16-k400-16f", 84.6, 96.7),
            "ALT-B/16, 32": _supervised("alt-b16-k400-32f", 85.4, 96.7),
            "ALT-L/14, 8": _supervised("alt-l14-k400-8f", 86.7, 97.4),
            "ALT-L/14, 16": _supervised("alt-l14-k400-16f", 87.6, 97.6),
            "ALT-L/14, 32": _supervised("alt-l14-k400-32f", 87.9, 97.7, 88.1),
        },
        gflops={
            "MViTv1-B": 4095,
            "Uniformer-B": 3108,
            "TimeSformer-L": 7140,
            "VideoSwin-L": 7248,
            "ViViT-H": 48916,
            "MTV-H": 45537,
            "ActionCLIP-B": 16890,
            "ST-Adapter-L": 8248,
            "EVL-L": 8088,
            "AIM-L": 11208,
            "X-CLIP-L": 7896,
            **{
                f"ALT-{size}, {frames}": 3 * cost.gflops
                for size, model in (("B/16", "alt-b16"), ("L/14", "alt-l14"))
                for frames in (8, 16, 32)
                if (cost := paper.cost_of(model, 8, frames)) is not None
            },
        },
    ),
    PaperTable(
        "few-shot",
        "Few-shot, first split, 32 frames, single view",
        "Table 2",
        "main text",
        tuple(f"{data} {shots}" for data in ("HMDB", "UCF") for shots in (2, 4, 8, 16)),
        {
            "TSM": _printed(17.5, 20.9, 18.4, 31.0, 25.3, 47.0, 64.4, 61.0),
            "TimeSformer": _printed(19.6, 40.6, 49.4, 55.4, 48.5, 75.6, 83.7, 89.4),
            "VideoSwin-B": _printed(20.9, 41.3, 47.9, 56.1, 53.3, 74.1, 85.8, 88.7),
            "ActionCLIP, 8 frames": _printed(55.0, 56.0, 58.0, None, 80.0, 85.0, 89.0, None),
            "X-CLIP-B/16": _shots(_few("xclip-b16"), (53.0, 57.3, 62.8, 64.0, 76.4, 83.4, 88.3, 91.4), _NONE),
            "X-Florence": _printed(51.6, 57.8, 64.1, 64.2, 84.0, 88.5, 92.5, 94.8),
            "ALT-B/16": _shots(
                _few("alt-b16"),
                (64.0, 66.1, 70.0, 74.1, 93.2, 95.3, 96.3, 97.1),
                (64.3, None, None, None, 93.2, None, None, None),
            ),
            "ALT-L/14": _shots(_few("alt-l14"), (68.0, 69.4, 73.0, 78.9, 96.0, 97.3, 98.0, 98.1), _NONE),
        },
    ),
    PaperTable(
        "zero-shot",
        "Zero-shot, 32 frames, single view: mean over three splits",
        "Table 3",
        None,
        ("HMDB-51", "UCF-101"),
        {
            "MTE": _spread((19.7, 1.6), (15.8, 1.3)),
            "ASR": _spread((21.8, 0.9), (24.4, 1.0)),
            "ZSECOC": _spread((22.6, 1.2), (15.1, 1.7)),
            "UR": _spread((24.4, 1.6), (17.5, 1.6)),
            "TS-GCN": _spread((23.2, 3.0), (34.2, 3.1)),
            "ER-ZSAR": _spread((35.3, 4.6), (51.8, 2.9)),
            "ActionCLIP": _spread((40.8, 5.4), (58.3, 3.4)),
            "X-CLIP-B/16": (
                _run(44.6, None, "xclip-b16-hmdb-zero-shot", 5.2),
                _run(72.0, None, "xclip-b16-ucf-zero-shot", 2.3),
            ),
            "ALT-B/16": (
                _run(48.6, None, "alt-b16-hmdb-zero-shot", 1.2),
                _run(76.7, None, "alt-b16-ucf-zero-shot", 0.9),
            ),
            "ALT-L/14": (
                _run(54.6, None, "alt-l14-hmdb-zero-shot", 1.1),
                _run(83.0, None, "alt-l14-ucf-zero-shot", 1.1),
            ),
        },
    ),
    PaperTable(
        "k600-zero-shot",
        "Zero-shot on Kinetics-600: 160 of the 220 new classes, three draws",
        "Table 4",
        None,
        ("top-1", "top-5"),
        {
            "DeViSE": _printed(23.8, 51.0),
            "ALE": _printed(23.4, 50.3),
            "SJE": _printed(22.3, 48.2),
            "ESZSL": _printed(22.9, 48.3),
            "DEM": _printed(23.6, 49.5),
            "GCN": _printed(22.3, 49.7),
            "ER-ZSAR": _spread((42.1, 1.4), (73.1, 0.3)),
            "X-CLIP-B/16": (
                _run(65.2, None, "xclip-b16-k600-zero-shot", 0.4),
                Cell(86.1, None, "xclip-b16-k600-zero-shot", 0.8, metric="top5"),
            ),
            "ALT-B/16": (
                _run(68.1, None, "alt-b16-k600-zero-shot", 0.6),
                Cell(88.1, None, "alt-b16-k600-zero-shot", 0.4, metric="top5"),
            ),
            "ALT-L/14": (
                _run(72.7, None, "alt-l14-k600-zero-shot", 0.4),
                Cell(90.7, None, "alt-l14-k600-zero-shot", 0.3, metric="top5"),
            ),
        },
    ),
    PaperTable(
        "components",
        "Alignment, merging and regions, B/16",
        "Table 5",
        None,
        _ABLATION,
        {
            "none": _ablation("components", "none", paper.COMPONENTS.rows["order-aware baseline"], _NOTHING),
            "aligned": _ablation("components", "align", paper.COMPONENTS.rows["class token aligned"], _NOTHING),
            "aligned, merged": _ablation(
                "components", "align-merge", paper.COMPONENTS.rows["class token aligned, merging"], _NOTHING
            ),
            "aligned regions, merged": _ablation(
                "components", "align-merge-region", paper.COMPONENTS.rows["regions aligned, merging"], _NOTHING
            ),
        },
    ),
    PaperTable(
        "linear-probe",
        "Linear probe, ALT-B/16 of K400 with 32 frames",
        "Table 6",
        None,
        ("split 1", "split 2", "split 3", "average"),
        {
            "UCF-101": (
                *_shots([f"alt-b16-ucf-linear-probe-split{i}" for i in (1, 2, 3)], (95.6, 95.8, 96.1), _NOTHING),
                _run(95.83, None, "alt-b16-ucf-linear-probe"),
            ),
            "HMDB-51": (
                *_shots([f"alt-b16-hmdb-linear-probe-split{i}" for i in (1, 2, 3)], (73.8, 73.5, 74.0), _NOTHING),
                _run(73.77, None, "alt-b16-hmdb-linear-probe"),
            ),
        },
    ),
    PaperTable(
        "strategy",
        "What of the image tower is trained, B/16, K400, 8 frames",
        "Table 7",
        None,
        ("top-1",),
        {
            "frozen": (_run(81.1, None, "strategy-frozen-k400-8f"),),
            "S-adapter": (_run(81.4, None, "strategy-s-k400-8f"),),
            "SM-adapter": (_run(81.5, None, "strategy-sm-k400-8f"),),
            "STM-adapter": (_run(82.0, None, "strategy-stm-k400-8f"),),
            "fine-tuned": (_run(82.4, None, "strategy-full-k400-8f"),),
        },
        gflops={"frozen": 110, "S-adapter": 116, "SM-adapter": 123, "STM-adapter": 163, "fine-tuned": 110},
    ),
    PaperTable(
        "tokens",
        "Tokens merged per block, B/16, K400, 8 frames",
        "Table 8",
        "Table C5",
        ("top-1",),
        {
            "r = 0": (_run(82.6, 83.1, "r0-k400-8f"),),
            "r = 4": (_run(82.4, 83.0, "r4-k400-8f"),),
            "r = 8": (_run(82.4, 82.8, "r8-k400-8f"),),
            "r = 13": (_run(81.9, 82.2, "r13-k400-8f"),),
        },
        gflops={f"r = {cost.r}": cost.gflops for cost in paper.COSTS if cost.top1 is not None},
    ),
    PaperTable(
        "k600",
        "Kinetics-600, 32 x 1 x 3 views",
        "Table C1",
        "Table C1",
        ("top-1",),
        {
            "MViT-B-24": _both(83.8),
            "VideoSwin-L at 384": _both(85.9),
            "ViViT-H at 320": _both(83.0),
            "ViViT-H": _both(85.8),
            "TokenLearner": _both(86.3),
            "Florence": _both(87.8),
            "CoVeR": _both(87.9),
            "MTV-L": _both(85.4),
            "MTV-H": _both(89.6),
            "X-CLIP-L": _both(88.3),
            "ALT-B/16": (_run(85.9, 86.1, "alt-b16-k600-32f"),),
            "ALT-L/14": (_run(88.5, 88.6, "alt-l14-k600-32f"),),
        },
        gflops={
            "MViT-B-24": 1180,
            "VideoSwin-L at 384": 25284,
            "ViViT-H": 48916,
            "TokenLearner": 48912,
            "MTV-L": 18483,
            "MTV-H": 45537,
            "X-CLIP-L": 7896,
            "ALT-B/16": 1308,
            "ALT-L/14": 4947,
        },
    ),
    PaperTable(
        "ssv2",
        "Something-Something v2, 32 x 1 x 3 views",
        "Table C2",
        "Table C2",
        ("top-1",),
        {
            "MViT-B-24": _both(69.7),
            "ViViT-L": _both(65.4),
            "MTV-B at 384": _both(68.5),
            "EVL-B": _both(62.4),
            "ST-Adapter-B": _both(69.5),
            "ALT-B/16": (_run(66.8, 68.6, "alt-b16-ssv2-32f"),),
        },
        gflops={
            "MViT-B-24": 708,
            "ViViT-L": 11892,
            "MTV-B at 384": 11160,
            "EVL-B": 2047,
            "ST-Adapter-B": 1955,
            "ALT-B/16": 1308,
        },
    ),
    PaperTable(
        "ssv2-few-shot",
        "Few-shot on Something-Something v2, single view",
        None,
        "Table C3",
        ("2", "4", "8", "16"),
        {
            "CLIP": tuple(Cell(None, 2.7) for _ in range(4)),
            "ActionCLIP": tuple(Cell(None, value) for value in (4.1, 5.8, 8.4, 11.1)),
            "X-CLIP": tuple(Cell(None, value) for value in (3.9, 4.5, 6.8, 10.0)),
            "A5": tuple(Cell(None, value) for value in (4.4, 5.1, 6.1, 9.7)),
            "ViFi-CLIP": tuple(Cell(None, value) for value in (6.2, 7.4, 8.5, 12.4)),
            "ALT-B/16": tuple(
                Cell(None, value, f"alt-b16-ssv2-{shots}shot")
                for shots, value in ((2, 6.6), (4, 7.7), (8, 9.4), (16, 12.9))
            ),
        },
    ),
    PaperTable(
        "corpus",
        "Entities of the corpus, B/16",
        "Table C3",
        "Table C4",
        _ABLATION,
        {
            "none (learned queries)": _ablation(
                "corpus", "none", paper.CORPUS_SUBSETS.rows["none"], (81.7, 52.8, 71.6)
            ),
            "body parts": _ablation("corpus", "body", paper.CORPUS_SUBSETS.rows["body parts"], (81.9, 56.4, 73.6)),
            "objects": _ablation("corpus", "object", paper.CORPUS_SUBSETS.rows["objects"], (82.5, 62.3, 75.8)),
            "scenes": _ablation("corpus", "scene", paper.CORPUS_SUBSETS.rows["scenes"], (82.4, 61.1, 75.1)),
            "motions": _ablation("corpus", "motion", paper.CORPUS_SUBSETS.rows["motions"], (81.8, 58.7, 74.4)),
            "all": _ablation("corpus", "all", paper.CORPUS_SUBSETS.rows["all"], (82.8, 64.3, 79.4)),
        },
    ),
    PaperTable(
        "decoder",
        "Parts of the video adapter, B/16",
        "Table C4",
        None,
        _ABLATION,
        {
            "neither": _ablation("decoder", "none", paper.ADAPTER_PARTS.rows["neither"], _NOTHING),
            "self-attention": _ablation("decoder", "attention", paper.ADAPTER_PARTS.rows["self-attention"], _NOTHING),
            "convolution": _ablation("decoder", "convolution", paper.ADAPTER_PARTS.rows["convolution"], _NOTHING),
            "both": _ablation("decoder", "both", paper.ADAPTER_PARTS.rows["both"], _NOTHING),
        },
    ),
)
