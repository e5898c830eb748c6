"""The protocols of the papers' tables: few-shot, zero-shot over splits, random subsets of the new classes.

Training and collection of logits happen elsewhere. A protocol turns their results into the number of a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from alt.data.few_shot import few_shot_indices
from alt.data.seeds import make_numpy_generator
from alt.errors import refuse_unordered

from .metrics import Result
from .run import Collected, result_of
from .spread import Spread, spread

__all__ = ["Spread", "draw_classes", "few_shot", "listed_subsets", "random_subsets", "restrict", "zero_shot"]


def few_shot(
    labels: Sequence[int],
    train_and_test: Callable[[list[int], int, int], float],
    *,
    shots: Sequence[int] = (2, 4, 8, 16),
    seeds: Sequence[int] = (0,),
) -> dict[int, Spread]:
    """Returns top-1 per number of shots K: trains on K random videos of every class, tests on the test split.

    Args:
        labels: class of every video of the train split (the first split of HMDB-51 or UCF-101; SSv2's own).
        train_and_test: called with (positions in the train split, shots, seed). It trains from the model of the large
            dataset, and returns top-1 in percent on the test split, single view.
        shots: numbers of videos per class. seeds: each makes a new draw and trains once.
    """
    found = {}
    for count in shots:
        values = [train_and_test(few_shot_indices(labels, count, seed), count, seed) for seed in seeds]
        found[count] = spread(values, seeds)
    return found


def zero_shot(splits: Iterable[Result] | Mapping[str, Result]) -> Spread:
    """Returns the mean and standard deviation of top-1 over the results of (three official) splits."""
    results = list(splits.values() if isinstance(splits, Mapping) else splits)
    return spread([result.top1 for result in results], range(1, len(results) + 1))


def restrict(collected: Collected, classes: Sequence[str], keep: Sequence[int]) -> tuple[Collected, list[str]]:
    """Keeps only the videos and only the logits of the classes ``keep``.

    The softmax over views is taken afterwards, over the remaining classes, as if the others did not exist.
    """
    refuse_unordered(keep, "keep")
    if collected.labels.dim() != 1:
        raise ValueError("keep: classes can only be left out where a video has one label")
    wanted = torch.as_tensor(list(keep), dtype=torch.long)
    count = collected.logits.shape[-1]
    if len(classes) != count:
        raise ValueError(f"classes: expected {count} names, one per column of the logits, got {len(classes)}")
    if len(wanted.unique()) != len(wanted) or len(wanted) == 0 or int(wanted.min()) < 0 or int(wanted.max()) >= count:
        raise ValueError(f"keep: expected distinct class numbers from 0 to {count - 1}, got {list(keep)[:8]}")
    position = torch.full((count,), -1)
    position[wanted] = torch.arange(len(wanted))
    labels = position[collected.labels]
    rows = labels >= 0
    return Collected(collected.logits[rows][..., wanted], labels[rows]), [classes[int(i)] for i in wanted]


def random_subsets(
    collected: Collected,
    classes: Sequence[str],
    *,
    size: int = 160,
    draws: int = 3,
    seed: int = 0,
    candidates: Sequence[int] | None = None,
) -> tuple[Spread, list[Result]]:
    """Runs Kinetics-600's zero-shot protocol on random subsets of the new classes (there 160 of 220, whose published
    draws :func:`alt.data.new_classes.read_draws` reads).

    Each of ``draws`` draws takes ``size`` classes. It is tested on their videos, against their names only.

    Args:
        collected: logits ``[N, V, C]`` of every test video, before any softmax.
        classes: the C names. candidates: numbers of the classes to draw from; None: all.
        seed: draw i uses ``seed + i``.

    Returns:
        (top-1 over the draws, the result of each draw).
    """
    pool = range(len(classes)) if candidates is None else candidates
    seeds = range(seed, seed + draws)
    drawn = draw_classes(pool, size, seeds)
    return listed_subsets(collected, classes, drawn, protocol=f"{size} of {len(pool)} classes", numbers=seeds)


def draw_classes(pool: Sequence[int], size: int, seeds: Sequence[int]) -> list[list[int]]:
    """Returns ``size`` random numbers of the pool for each seed, ascending.

    Raises:
        ValueError: there are fewer, or no seeds.
    """
    refuse_unordered(pool, "candidates")
    if not 2 <= size <= len(pool):
        raise ValueError(f"size: expected 2 to {len(pool)} classes, got {size}")
    if len(seeds) < 1:
        raise ValueError(f"draws: expected an int >= 1, got {len(seeds)}")
    return [sorted(make_numpy_generator(seed, 0).choice(pool, size=size, replace=False).tolist()) for seed in seeds]


def listed_subsets(
    collected: Collected,
    classes: Sequence[str],
    draws: Sequence[Sequence[int]],
    *,
    protocol: str,
    numbers: Sequence[int],
) -> tuple[Spread, list[Result]]:
    """Runs the zero-shot protocol on given subsets of the classes: each on their videos, against their names only.

    Args:
        collected, classes: as in :func:`random_subsets`. draws: for each, the numbers of its classes.
        protocol: in words. numbers: of the draws: their seeds, or their places in a file.

    Returns:
        (top-1 over the draws, the result of each draw).
    """
    results = []
    for number, keep in zip(numbers, draws, strict=True):
        part, names = restrict(collected, classes, keep)
        results.append(result_of(part, names, protocol=protocol, draw=number))
    return spread([result.top1 for result in results], numbers), results
