"""Choice of a word's sense by a T5 that was trained for it, through ``transformers``. The paper uses such a model.

The default is the checkpoint of Wahle et al. (2021), T5-large trained on SemCor 3.0. It reads a question, as its
authors' page writes it, and answers with one of the descriptions in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from alt.errors import one_line

__all__ = ["DEFAULT", "SenseModel", "write_question"]

DEFAULT = "jpwahle/t5-large-word-sense-disambiguation"
"""Name on the Hub; it is downloaded only if a command asks for T5."""


class SenseModel:
    """A T5 for word senses.

    Args:
        name: a folder, or a name on the Hub. device: of the model.

    Raises:
        ValueError: ``transformers`` is not installed, or there is no T5 of that name.
    """

    def __init__(self, name: str = DEFAULT, device: torch.device | str = "cpu") -> None:
        try:
            from transformers import AutoTokenizer, T5ForConditionalGeneration
        except ImportError:
            raise ValueError("wsd: T5 needs transformers; pip install 'alt-kernels[transformers]'") from None
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(name)
            model: Any = T5ForConditionalGeneration.from_pretrained(name)
        except Exception as error:  # of the hub, of its files, of the disk, and of a tokenizer's missing package
            raise ValueError(f"wsd: the T5 {name!r} cannot be loaded ({one_line(error)})") from None
        self.name, self._model = name, model.to(device).eval()

    def choose(self, word: str, descriptions: Sequence[str], sentence: str) -> int:
        """Returns which description the model gives the highest probability as its answer.

        That is what its generation finds, held to the candidates: a text that is none of them cannot be the answer.

        Args:
            word: as it stands in the sentence. descriptions: at least one. sentence: the context.
        """
        scores = self.score(word, descriptions, sentence)
        return int((scores == scores.max()).int().argmax())

    @torch.no_grad()
    def score(self, word: str, descriptions: Sequence[str], sentence: str) -> Tensor:
        r"""Returns ``[n]``, the log-probability of each description, :math:`\sum_t \log p(d_t | d_{<t}, question)`."""
        device = self._model.device
        question = self._tokenizer(write_question(word, descriptions, sentence), return_tensors="pt").to(device)
        memory = self._model.get_encoder()(**question)
        found = []
        for description in descriptions:
            answer = self._tokenizer(description, return_tensors="pt").input_ids.to(device)
            output = self._model(encoder_outputs=memory, attention_mask=question["attention_mask"], labels=answer)
            log_p = output.logits.float().log_softmax(-1)
            found.append(log_p.gather(-1, answer[..., None]).sum().cpu())
        return torch.stack(found)


def write_question(word: str, descriptions: Sequence[str], sentence: str) -> str:
    """Returns what the model reads, in the words of its authors' page; the word stands in quotation marks, also in the
    sentence if it is there."""
    quoted = [f'" {description} "' for description in descriptions]
    listed = quoted[0] if len(quoted) == 1 else " , ".join(quoted[:-1]) + f" , or {quoted[-1]}"
    marked = re.sub(rf"\b{re.escape(word)}\b", lambda found: f'" {found[0]} "', sentence, count=1)
    return (
        f'question: which description describes the word " {word} " best in the following context? '
        f"descriptions: [ {listed} ] context: {marked} ."
    )
