"""WordNet's data base files (WNDB), read without NLTK: senses of a word, their glosses and relations.

The files are WordNet's own ``index.noun``, ``data.noun``, ``noun.exc`` and so on, of version 2 or 3. Debian's package
wordnet-base has them in /usr/share/wordnet. Formats: the manual pages wndb(5WN) and morphy(7WN).
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["Sense", "WordNet", "find_wordnet"]

PARTS = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
"""Letters of the parts of speech, and the ends of the files' names."""
PLACES = ("/usr/share/wordnet", "/usr/local/WordNet-3.0/dict", "/usr/share/nltk_data/corpora/wordnet")
_TYPES = {"n": 1, "v": 2, "a": 3, "r": 4, "s": 5}
_ENDINGS = {  # morphy(7WN): what is taken from the end of a word, and what is put there
    "n": (
        *(("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh")),
        *(("men", "man"), ("ies", "y")),
    ),
    "v": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "a": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "r": (),
}
_RELATED = {"@", "@i", "~", "~i", "#m", "#s", "#p", "%m", "%s", "%p", "*", ">", "+", ";c"}


class Sense(NamedTuple):
    """One meaning of a word.

    lemma, part: the word in its base form, and n, v, a or r. number: 1 is the most frequent. key: WordNet's sense key,
    which other versions share. group: the number of the lexicographer's file, lexnames(5WN). gloss: the definition.
    examples: sentences. synonyms: words of the same meaning, the lemma included. synset: (part, offset).
    """

    lemma: str
    part: str
    number: int
    key: str
    group: int
    gloss: str
    examples: tuple[str, ...]
    synonyms: tuple[str, ...]
    synset: tuple[str, int]


class _Synset(NamedTuple):
    group: int
    kind: str
    words: tuple[tuple[str, int], ...]  # with the lexicographer's number of each
    pointers: tuple[tuple[str, str, int], ...]  # relation, part, offset
    gloss: str
    examples: tuple[str, ...]


def find_wordnet(folder: str | os.PathLike[str] | None = None) -> Path:
    """Returns the folder of WordNet's files: the given one, that of ``WNSEARCHDIR``, or a usual place.

    Raises:
        FileNotFoundError: there is none; the message says how to get it.
    """
    named = folder if folder is not None else os.environ.get("WNSEARCHDIR")
    places = [Path(named)] if named else [*map(Path, PLACES), Path.home() / "nltk_data/corpora/wordnet"]
    for place in places:
        if all((place / f"{kind}.{end}").is_file() for kind in ("index", "data") for end in ("noun", "verb")):
            return place
    where = f"in {places[0]}" if named else f"in {', '.join(map(str, places[:-1]))}"
    raise FileNotFoundError(
        f"wordnet: there are no WordNet files (index.noun, data.noun, index.verb, data.verb) {where}; install Debian's "
        "wordnet-base, or give their folder"
    )


class WordNet:
    """A WordNet data base in a folder.

    Args:
        folder: of the files; None: see :func:`find_wordnet`.

    Raises:
        FileNotFoundError: there is none. ValueError: a file is not WordNet's.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = find_wordnet(folder)
        self._data: dict[str, bytes] = {}
        self._index: dict[str, dict[str, str]] = {}
        self._exceptions: dict[str, dict[str, list[str]]] = {}
        for part, end in PARTS.items():
            self._data[part] = self._read(f"data.{end}")
            lines = self._read(f"index.{end}").decode("utf-8", "replace").splitlines()
            self._index[part] = {line.partition(" ")[0]: line for line in lines if not line.startswith(" ")}
            pairs = [line.split() for line in self._read(f"{end}.exc").decode("utf-8", "replace").splitlines()]
            self._exceptions[part] = {words[0]: words[1:] for words in pairs if len(words) > 1}
        counts = [line.split() for line in self._read("cntlist.rev").decode("utf-8", "replace").splitlines()]
        self._counts = {words[0]: int(words[2]) for words in counts if len(words) == 3 and words[2].isdigit()}
        self.version = self._find_version()
        self._synset = lru_cache(maxsize=None)(self._parse_synset)
        self._senses_of = lru_cache(maxsize=None)(self._read_senses)

    def _read(self, name: str) -> bytes:
        path = self.folder / name
        return path.read_bytes() if path.is_file() else b""  # only nouns and verbs are needed

    def _find_version(self) -> str:
        found = re.search(rb"WordNet (\d[\d.]*\d)", self._data["n"][:4000])
        return found[1].decode() if found else "of an unknown version"

    def has(self, words: str, part: str) -> bool:
        """Returns whether a word or phrase, as it is written, is in the data base."""
        return words.lower().replace(" ", "_") in self._index[part]

    def words(self, part: str) -> list[str]:
        """Returns all words and phrases of a part of speech, in the order of its index."""
        return [word.replace("_", " ") for word in self._index[part]]

    def base_forms(self, words: str, part: str) -> list[str]:
        """Returns base forms of a word or phrase that the data base has: the form itself first (morphy)."""
        form = words.lower().replace(" ", "_")
        found = [form, *self._exceptions[part].get(form, [])]
        if len(found) == 1:  # an irregular form has no regular one
            found += [form[: len(form) - len(end)] + new for end, new in _ENDINGS[part] if form.endswith(end)]
            if part == "v" and re.search(r"([bdgklmnprt])\1(ing|ed)$", form):
                found.append(re.sub(r"(.)\1(ing|ed)$", r"\1", form))  # running
        if part == "n" and "_" in form:  # push ups: push-up; head stand: headstand
            found += [
                base for joint in "- " for base in self.base_forms(form.replace("_", joint).replace(" ", ""), "n")
            ]
        first, _, rest = form.partition("_")
        if part == "v" and rest:  # waking up
            found += [f"{base}_{rest}" for base in self.base_forms(first, "v")]
        known = [word.replace("_", " ") for word in dict.fromkeys(found) if word in self._index[part]]
        if part == "v":  # swinging: swing, not swinge
            known.sort(key=lambda word: -self._count(word, part))
        return known

    def senses(self, words: str, part: str) -> list[Sense]:
        """Returns the senses of a word or phrase in any form, the most frequent ones of each base form first."""
        return [sense for form in self.base_forms(words, part) for sense in self._senses_of(form, part)]

    def frequency(self, words: str, part: str) -> int:
        """Returns how often a word occurs as a part of speech in WordNet's tagged texts."""
        return sum(self._count(form, part) for form in self.base_forms(words, part))

    def _count(self, form: str, part: str) -> int:
        return sum(map(self.count, self._senses_of(form, part)))

    def count(self, sense: Sense) -> int:
        """Returns how often a sense occurs in WordNet's tagged texts (0 where there is no cntlist.rev)."""
        return self._counts.get(sense.key, 0)

    def is_name(self, sense: Sense) -> bool:
        """Returns whether a meaning is one person, place or thing with a name."""
        return any(kind == "@i" for kind, _, _ in self._synset(*sense.synset).pointers)

    def related(self, sense: Sense) -> list[str]:
        """Returns the glosses of the meanings that are more general or special, parts, or of the same topic."""
        synset = self._synset(*sense.synset)
        near = [self._synset(part, offset) for kind, part, offset in synset.pointers if kind in _RELATED]
        return [" ".join([*(word for word, _ in other.words), other.gloss]) for other in near]

    def hypernyms(self, sense: Sense) -> set[str]:
        """Returns the words of all more general meanings."""
        found: set[str] = set()
        todo = [sense.synset]
        while todo:
            synset = self._synset(*todo.pop())
            for kind, part, offset in synset.pointers:
                if kind in ("@", "@i"):
                    words = {word for word, _ in self._synset(part, offset).words}
                    if not words <= found:
                        found |= words
                        todo.append((part, offset))
        return found

    def _read_senses(self, form: str, part: str) -> list[Sense]:
        lemma = form.replace(" ", "_")
        fields = self._index[part][lemma].split()
        try:
            offsets = [int(text) for text in fields[-int(fields[2]) :]]
        except (ValueError, IndexError):
            raise ValueError(f"{self.folder}/index.{PARTS[part]}: the line of {form!r} is not WordNet's") from None
        found = []
        for number, offset in enumerate(offsets, 1):
            synset = self._synset(part, offset)
            ids = [id_ for word, id_ in synset.words if word.lower() == form]
            key = f"{lemma}%{_TYPES[synset.kind]}:{synset.group:02d}:{ids[0] if ids else 0:02d}::"
            words = tuple(word for word, _ in synset.words)
            found.append(
                Sense(form, part, number, key, synset.group, synset.gloss, synset.examples, words, (part, offset))
            )
        return found

    def _parse_synset(self, part: str, offset: int) -> _Synset:
        data = self._data["a" if part == "s" else part]
        line = data[offset : data.find(b"\n", offset)].decode("utf-8", "replace")
        head, _, text = line.partition(" | ")
        fields = head.split()
        try:
            if int(fields[0]) != offset:
                raise ValueError
            count = int(fields[3], 16)
            words = tuple(
                (re.sub(r"\([a-z]+\)$", "", fields[4 + 2 * i]).replace("_", " "), int(fields[5 + 2 * i], 16))
                for i in range(count)
            )
            begin = 5 + 2 * count
            rows = (fields[begin + 4 * i : begin + 4 * i + 3] for i in range(int(fields[begin - 1])))
            pointers = tuple((kind, part, int(where)) for kind, where, part in rows)
        except (ValueError, IndexError):
            raise ValueError(
                f"{self.folder}/data.{PARTS['a' if part == 's' else part]}: there is no meaning at byte {offset}; the "
                "files are not of one WordNet version"
            ) from None
        examples = tuple(re.findall(r'"([^"]*)"?', text))
        gloss = re.split(r';?\s*"', text, maxsplit=1)[0].strip().rstrip(";").strip()
        return _Synset(int(fields[1]), fields[2], words, pointers, gloss, examples)
