"""The classes on which a zero-shot configuration is tested, draw by draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from alt.data.new_classes import find_named, find_new, read_draws
from alt.errors import UserError, one_line
from alt.train.config import EvaluationSection

from .protocols import draw_classes

__all__ = ["ChosenClasses", "choose_classes"]


class ChosenClasses(NamedTuple):
    """draws: numbers of the classes of each draw. numbers: of the draws: seeds, or their place in the file.
    protocol: in words. pool: numbers of the classes that were drawn from."""

    draws: list[list[int]]
    numbers: list[int]
    protocol: str
    pool: list[int]


def choose_classes(section: EvaluationSection, names: Sequence[str], trained: Sequence[str]) -> ChosenClasses:
    """Returns the draws of ``section.class_draws``, or ``section.draws`` times ``section.subset`` random new classes.

    Args:
        section: its ``subset`` and ``draws`` must be those of the file, where both are given.
        names: of the data set. trained: class names of the model; none of them, nor a renamed one, is drawn.

    Raises:
        UserError: the data set has too few new classes, or the file is wrong or names others.
    """
    new = find_new(names, trained)
    size, draws = section.subset, section.draws
    try:
        if section.class_draws is None:
            seeds = list(range(draws or 1))
            drawn = draw_classes(new, size or 0, seeds)
            return ChosenClasses(drawn, seeds, f"{size} of {len(new)} classes", new)
        listed = read_draws(section.class_draws)
        chosen = [find_named(names, draw) for draw in listed.draws]
        pool = find_named(names, listed.classes)
    except ValueError as error:
        raise UserError(f"evaluation.{one_line(error, 300).replace('size', 'subset', 1)}.") from None
    where = f"evaluation.class_draws: {section.class_draws}"
    sizes = sorted({len(draw) for draw in chosen})
    if size is not None and sizes != [size]:
        raise UserError(f"{where} draws {' or '.join(map(str, sizes))} classes, evaluation.subset says {size}.")
    if draws is not None and len(chosen) != draws:
        raise UserError(f"{where} has {len(chosen)} draws, evaluation.draws says {draws}.")
    seen = next((names[number] for number in pool if number not in set(new)), None)
    if seen is not None:
        raise UserError(f"{where}: classes that training never saw are expected, it was trained on {seen!r}.")
    return ChosenClasses(chosen, list(range(1, len(chosen) + 1)), f"{section.class_draws}", pool)
