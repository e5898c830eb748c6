"""A data base of thirty meanings in the format of WordNet's files."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

ENDS = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
# name: part, group of lexnames(5WN), words, gloss, more general meanings, how often it occurs. In WordNet's order.
SYNSETS: dict[str, tuple[str, int, str, str, str, int]] = {
    "entity": ("n", 3, "entity", "that which is perceived to have its own existence", "", 0),
    "artifact": ("n", 6, "artifact", "a man-made object", "entity", 0),
    "structure": ("n", 6, "structure", "a thing constructed; a complex entity of many parts", "artifact", 0),
    "kitchen": ("n", 6, "kitchen", "a room equipped for preparing meals", "room", 9),
    "room": ("n", 6, "room", "an area within a building enclosed by walls and floor and ceiling", "structure", 9),
    "bank_money": (
        "n",
        14,
        "bank depository",
        'a place that keeps deposits and money; "he cashed a check"',
        "entity",
        9,
    ),
    "bank_river": ("n", 17, "bank", 'sloping land beside a body of water; "they pulled the canoe up"', "entity", 8),
    "river": ("n", 17, "river", "a large natural stream of water in a bed of sloping land", "entity", 9),
    "canoe": ("n", 6, "canoe", "small and light boat, pulled up on land beside the water", "artifact", 3),
    "money": ("n", 21, "money", "the most common medium of exchange, kept as deposits", "entity", 9),
    "robber": ("n", 18, "robber", "a thief who takes money from depositors", "entity", 2),
    "hat": ("n", 6, "hat lid", "headdress that protects the head from bad weather", "artifact", 5),
    "head": ("n", 8, "head", "the upper part of the human body", "entity", 9),
    "hand": ("n", 8, "hand manus", "the extremity of the superior limb", "entity", 9),
    "ice": ("n", 27, "ice", "water frozen in the solid state", "entity", 5),
    "cream": ("n", 13, "cream", "the part of milk containing the butterfat", "entity", 4),
    "ice_cream": ("n", 13, "ice_cream", "frozen dessert containing cream and sugar", "entity", 4),
    "swing_n": ("n", 4, "swing", "the act of swinging a golf club", "entity", 1),
    "swing_seat": ("n", 6, "swing", "a plaything to support someone swinging back and forth", "artifact", 1),
    "golf": ("n", 4, "golf", "a game played on a large open course with clubs and a ball", "entity", 3),
    "fencing": ("n", 4, "fencing", "the sport of fighting with swords", "entity", 1),
    "bull": ("n", 5, "bull", "uncastrated adult male of domestic cattle", "entity", 2),
    "fence": ("v", 35, "fence", "enclose with a fence", "", 1),
    "lift": ("v", 38, "lift raise", "move something upwards", "", 9),
    "wash": ("v", 35, "wash", "clean with water", "", 9),
    "sit": ("v", 35, "sit", "be seated", "", 9),
    "rob": ("v", 40, "rob", "take something away by force", "", 9),
    "eat": ("v", 34, "eat", "take in solid food", "", 9),
    "ride": ("v", 38, "ride", "sit and travel on the back of an animal", "", 9),
    "swing": ("v", 38, "swing", "move in a curve", "", 5),
    "swinge": ("v", 30, "swinge", "burn superficially or lightly", "", 0),
    "wake_up": ("v", 29, "wake_up awake", "stop sleeping", "", 1),
    "play": ("v", 33, "play", "participate in games or sport", "", 9),
    "wake": ("v", 29, "wake", "be awake", "", 3),
    "mechanical": ("a", 1, "mechanical", "using a mechanism", "", 2),
}
EXCEPTIONS = {"n": "feet foot\n", "v": "ate eat\nrode ride\n"}


def write_wordnet(folder: Path, verbs: str = "") -> Path:
    """Writes the data base, with further ``verbs``, and returns its folder."""
    synsets = SYNSETS | {f"{verb}_more": ("v", 35, verb, f"to {verb}", "", 5) for verb in verbs.split()}
    folder.mkdir(parents=True, exist_ok=True)
    offsets: dict[str, int] = {}
    for _ in range(2):  # the second time with the offsets of the first
        texts: dict[str, str] = defaultdict(lambda: "  1 WordNet 3.0 Copyright of nobody: a tiny data base\n")
        for name, (part, group, words, gloss, above, _count) in synsets.items():
            offset = len(texts[part].encode())
            names = words.split()
            found = [f"@ {offsets.get(other, 0):08d} n 0000" for other in above.split()]
            found += [
                f"~ {offsets.get(other, 0):08d} n 0000" for other, row in synsets.items() if name in row[4].split()
            ]
            head = f"{offset:08d} {group:02d} {part} {len(names):02x} {' '.join(f'{word} 0' for word in names)}"
            pointers = " ".join([f"{len(found):03d}", *found])
            texts[part] += f"{head} {pointers} {'01 + 02 00 ' if part == 'v' else ''}| {gloss}  \n"
            offsets[name] = offset
    counts = ""
    for part, end in ENDS.items():
        senses: dict[str, list[str]] = defaultdict(list)
        for name, row in synsets.items():
            for word in row[2].split() if row[0] == part else ():
                senses[word].append(name)
                types = {"n": 1, "v": 2, "a": 3, "r": 4}
                counts += f"{word}%{types[part]}:{row[1]:02d}:00:: {len(senses[word])} {row[5]}\n"
        lines = [
            f"{word} {part} {len(found)} 0 {len(found)} {len(found)} {' '.join(f'{offsets[n]:08d}' for n in found)}  \n"
            for word, found in sorted(senses.items())
        ]
        (folder / f"index.{end}").write_text("  1 WordNet 3.0 Copyright of nobody\n" + "".join(lines))
        (folder / f"data.{end}").write_text(texts[part])
        (folder / f"{end}.exc").write_text(EXCEPTIONS.get(part, ""))
    (folder / "cntlist.rev").write_text(counts)
    return folder
