"""The 220 classes of Kinetics-600 that Kinetics-400 has not, and the three published draws of 160 of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from alt.data.action_names import read_action_names
from alt.data.new_classes import DRAWS, RENAMED, ClassDraws, find_named, find_new, read_draws, write_draws

OLD, NEW = read_action_names("k400"), read_action_names("k600")


def test_of_232_other_names_twelve_are_classes_of_kinetics_400() -> None:
    assert len(set(NEW) - set(OLD)) == 232
    assert set(RENAMED) <= set(NEW) - set(OLD)
    assert set(RENAMED.values()) <= set(OLD) - set(NEW)
    found = [NEW[i] for i in find_new(NEW, OLD)]
    assert len(found) == 220
    assert "hugging baby" in found  # split off
    assert "opening wine bottle" in found
    assert not {"hugging (not baby)", "dyeing hair", "making the bed", "yoga"} & set(found)


def test_spellings_of_files_do_not_make_classes_new() -> None:
    trained = ["dying hair", "ApplyEyeMakeup", "brush_hair"]
    names = ["Dyeing_Hair", "apply eye makeup", "Brush Hair", "waking up", "acting in play"]
    assert find_new(names, trained) == [3, 4]
    assert find_new(names, [*trained, "baby waking up"]) == [4]


def test_the_published_draws() -> None:
    """160 of the 220 each; read by hand off the lists of github.com/muzairkhattak/ViFi-CLIP."""
    assert DRAWS == ("k600-160-of-220",)
    found = read_draws("k600-160-of-220")
    assert list(found.classes) == sorted(NEW[i] for i in find_new(NEW, OLD))
    assert [len(set(draw)) for draw in found.draws] == [160, 160, 160]
    first, second, third = (set(draw) for draw in found.draws)
    assert {"acting in play", "yarn spinning"} <= first
    assert "alligator wrestling" in third - first - second
    assert "winking" in first & second & third
    assert set(found.classes) - first - second - third == {"making horseshoes", "pillow fight", "spelunking"}
    # 220 draws of 160: 71.4 % of a draw are in another one
    assert 100 < len(first & second) < 130
    assert find_named(NEW, first) == [i for i, name in enumerate(NEW) if name in first]


def test_files_of_draws(tmp_path: Path) -> None:
    drawn = ClassDraws(("a, b", "c", "d"), (("a, b", "d"), ("c", "d")))
    path = write_draws(drawn, tmp_path / "draws.csv")
    assert path.read_text() == 'class,draw 1,draw 2\n"a, b",1,0\nc,0,1\nd,1,1\n'
    assert read_draws(path) == drawn
    for text, says in (
        ("name,draw 1\na,1\n", "a column 'class' and one for each draw are expected"),
        ("class,draw 1\na,2\n", r"draws\.csv, line 2: a class and 1 numbers 0 or 1 are expected, got \['a', '2'\]"),
        ("class,draw 1\na\n", "line 2: a class and 1 numbers"),
        ('class,draw 1\n"a\n', "not a readable CSV file"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=says):
            read_draws(path)
    with pytest.raises(ValueError, match=r"none: neither a readable file .* nor one of k600-160-of-220"):
        read_draws("none")
    with pytest.raises(ValueError, match=r"expected 2 of the data set's 3, 1 of them are not among these: z$"):
        find_named(["x", "Y", "w"], ["y", "z"])
