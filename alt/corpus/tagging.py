"""Parts of speech of the words of an action label: by spaCy or NLTK where they are installed, or by WordNet's lexicon.

Every tagger is a function from a list of words to a list of tags of the universal set: NOUN, VERB, ADJ, ADV, ADP, DET,
CCONJ, PRON, NUM, PART.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .wordnet import WordNet

__all__ = ["TAGGERS", "Tagger", "open_tagger", "tag_sentence"]

TAGGERS = ("auto", "lexicon", "nltk", "spacy")
_CLOSED = {
    "ADP": "above across against along around at away behind below beside between by down for from in inside into "
    "like near of off on onto out outside over past through to toward towards under underneath until up upon with "
    "without",
    "DET": "a an the this that these those some any each every no all both another",
    "CCONJ": "and or but nor so",
    "PRON": "i you he she it we they him her them something someone anything one it's his their your my its itself",
    "NUM": "two three four five six seven eight nine ten",
    "ADV": "not then together upright upside down lightly slightly completely actually just almost together",
    "PART": "'s",
}
_AUXILIARIES = {
    "is",
    "are",
    "was",
    "were",
    "be",
    "been",
    "being",
    "has",
    "have",
    "had",
    "do",
    "does",
    "did",
    "can",
    "will",
}
_POSSESSIVES = {"his", "her", "their", "your", "my", "its"}
_PLURALS = {"people", "men", "women", "children", "they", "we", "you", "i", "who", "that", "police", "cattle"}
_TAG_OF = {word: tag for tag, words in _CLOSED.items() for word in words.split()}


class Tagger(NamedTuple):
    """name: which one it is, for the record. tag: from words to their tags."""

    name: str
    tag: Callable[[list[str]], list[str]]


def open_tagger(name: str, wordnet: WordNet, *, sentences: bool = False) -> Tagger:
    """Returns a tagger by name; ``auto`` is spaCy, NLTK or the lexicon, the first whose data is installed.

    Args:
        sentences: the lexicon reads sentences, such as captions, instead of action labels. The others read both.

    Raises:
        ValueError: the name is unknown, or the tagger or its data is not installed.
    """
    if name not in TAGGERS:
        raise ValueError(f"tagger: expected one of {', '.join(TAGGERS)}, got {name!r}")
    if name == "lexicon":
        tag = tag_sentence if sentences else tag_by_lexicon
        return Tagger("lexicon", lambda words: tag(words, wordnet))
    openers = {"spacy": _open_spacy, "nltk": _open_nltk}
    if name != "auto":
        try:
            return openers[name]()
        except (ImportError, OSError, LookupError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"tagger: {name} or its data is not installed ({reason}); lexicon needs nothing") from None
    for opener in openers.values():
        try:
            return opener()
        except (ImportError, OSError, LookupError):
            continue
    return open_tagger("lexicon", wordnet, sentences=sentences)


def _open_spacy() -> Tagger:
    import spacy  # type: ignore[import-not-found,unused-ignore]

    model = spacy.load("en_core_web_sm", disable=["parser", "ner"])

    def tag(words: list[str]) -> list[str]:
        return [{"PROPN": "NOUN", "AUX": "VERB"}.get(token.pos_, token.pos_) for token in _run(words)]

    def _run(words: list[str]) -> list:
        document = spacy.tokens.Doc(model.vocab, words)
        for _, component in model.pipeline:
            document = component(document)
        return list(document)

    return Tagger(f"spaCy {spacy.__version__} en_core_web_sm", tag)


def _open_nltk() -> Tagger:
    import nltk  # type: ignore[import-not-found,import-untyped,unused-ignore]

    nltk.pos_tag(["word"], tagset="universal")  # LookupError if its data is missing
    names = {"CONJ": "CCONJ", "PRT": "ADP"}

    def tag(words: list[str]) -> list[str]:
        return [names.get(tag, tag) for _, tag in nltk.pos_tag(words, tagset="universal")]

    return Tagger(f"NLTK {nltk.__version__}", tag)


def tag_by_lexicon(words: list[str], wordnet: WordNet) -> list[str]:
    """Returns the tags of an action label's words by WordNet's lexicon and the order of an action label.

    A label is a verb with its objects ("braiding hair", "climb stairs"), verbs joined by "or", or a noun phrase
    ("rope climbing", "high jump"). So the first word is a verb if it is a gerund, or a base form that is used as a verb
    more often than as a noun. Every other word is a noun if it can be one; a gerund is a noun only at the end
    ("sled dog racing", but "person collecting garbage").
    """
    tags: list[str] = []
    for i, word in enumerate(words):
        begins = i == 0 or tags[-1] == "CCONJ"
        if word in _TAG_OF and not begins:
            tags.append(_TAG_OF[word])
        elif not begins and word.endswith("ing") and wordnet.base_forms(word, "v"):
            ends = i + 1 == len(words) or _TAG_OF.get(words[i + 1]) == "CCONJ"
            tags.append("NOUN" if ends and wordnet.has(word, "n") else "VERB")
        elif begins and _is_verb(word, words, i, wordnet):
            tags.append("VERB")
        elif wordnet.base_forms(word, "n") and not _is_adjective(word, words, i, wordnet):
            tags.append("NOUN")
        elif wordnet.base_forms(word, "a"):
            tags.append("ADJ")
        elif wordnet.base_forms(word, "v"):
            tags.append("VERB")
        elif wordnet.has(word, "r"):
            tags.append("ADV")
        else:
            tags.append(_TAG_OF.get(word, "NOUN"))
    return tags


def tag_sentence(words: list[str], wordnet: WordNet) -> list[str]:
    """Returns the tags of a caption's words, or of a phrase that begins with its verb, by WordNet's lexicon.

    Everything is tagged as in a label, but for verbs behind the first word: gerunds that do not stand in a noun phrase
    ("a man holding a cup", not "a swimming pool"), what may follow its subject ("a woman covers her face", "people
    dance on a stage"), and participles behind a form of "be" ("is dressed in").
    """
    tags = tag_by_lexicon(words, wordnet)
    tags[:1] = [_TAG_OF.get(word, tag) for word, tag in zip(words[:1], tags, strict=False)]
    for i in range(len(words)):
        before = tags[i - 1] if i else ""
        if i and tags[i] in ("NOUN", "VERB", "ADJ"):
            if words[i] not in _AUXILIARIES and _is_predicate(words, tags, i, before, wordnet):
                tags[i] = "VERB"
            elif tags[i] == "VERB":
                tags[i] = "NOUN" if wordnet.base_forms(words[i], "n") else "ADJ"
        if words[i] in _AUXILIARIES:
            tags[i] = "AUX"
    return tags


def _is_predicate(words: list[str], tags: list[str], i: int, before: str, wordnet: WordNet) -> bool:
    word, after = words[i], tags[i + 1] if i + 1 < len(words) else ""
    if not wordnet.base_forms(word, "v"):
        return False
    if word.endswith("ing") and not wordnet.has(word, "v"):
        if before in ("NOUN", "AUX", "CCONJ", "VERB", "ADV", "PRON"):
            return True
        return before == "ADP" and not wordnet.has(word, "n")  # "for cutting", but "in clothing"
    if before == "AUX":  # "is dressed", "can jump"
        return not word.endswith("s")
    owner = words[i - 1] in _POSSESSIVES or words[i - 1].endswith("'s")
    subject = before in ("NOUN", "PRON") and not owner
    several = subject and (words[i - 1].endswith("s") or words[i - 1] in _PLURALS)
    if before == "CCONJ" and "VERB" in tags[:i]:  # "run and jump", but "holding a cup and hat"
        return wordnet.frequency(word, "v") >= wordnet.frequency(word, "n")
    if not subject or (after == "NOUN" and not several and not word.endswith("s")):
        return False
    return word.endswith("s") != several if wordnet.has(word, "v") or word.endswith("s") else after == "ADP"


def _is_verb(word: str, words: list[str], i: int, wordnet: WordNet) -> bool:
    if not wordnet.base_forms(word, "v"):
        return False
    if word.endswith("ing") and len(word) > 4 and not wordnet.has(word, "v"):
        return True
    later = [other for other in words[i + 1 :] if other.endswith("ing") and wordnet.base_forms(other, "v")]
    if later:  # "rope climbing": the gerund is the verb
        return False
    verb, others = wordnet.frequency(word, "v"), [wordnet.frequency(word, part) for part in "na"]
    return bool(verb >= max(others) and wordnet.has(word, "v")) or not wordnet.base_forms(word, "n")


def _is_adjective(word: str, words: list[str], i: int, wordnet: WordNet) -> bool:
    """Whether a word that can be a noun or an adjective stands before a noun, and is an adjective more often."""
    if i + 1 == len(words) or not wordnet.has(word, "a") or not wordnet.base_forms(words[i + 1], "n"):
        return False
    return wordnet.frequency(word, "a") > wordnet.frequency(word, "n")
