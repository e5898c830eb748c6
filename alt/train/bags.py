"""MAXI: unlabelled clips and bags of texts. Matching, filtering, prompts, and the losses over bags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from alt.data.seeds import make_generator

from .config import Form
from .objective import ClipBatch, Objective, StepLoss

__all__ = [
    "BagObjective",
    "DictionaryObjective",
    "Form",
    "Matches",
    "bag_loss",
    "bag_prompts",
    "dictionary_loss",
    "draw_texts",
    "keep_share",
    "match_texts",
]


class Matches(NamedTuple):
    """text: int64 ``[N]``, the number of the best text of each clip. similarity: ``[N]``, its cosine."""

    text: Tensor
    similarity: Tensor


def match_texts(videos: Tensor, texts: Tensor) -> Matches:
    r"""Finds the text of a dictionary that is most like each clip.

    .. math:: \hat t_i = \arg\max_{t \in D} \cos(v_i, t)

    Of equal cosines the first text counts.

    Args:
        videos: ``[N, d]``, by the model before training. texts: ``[D, d]``, of the dictionary's names; MAXI averages
            each over the templates "kinetics28".

    Raises:
        ValueError: there are no texts, or the widths differ.

    Source: arXiv 2303.08914, Eq. 1.
    """
    if texts.dim() != 2 or videos.dim() != 2 or videos.shape[1] != texts.shape[1] or len(texts) == 0:
        raise ValueError(
            f"texts: expected [D, d] with at least one row, like videos [N, d], got {list(texts.shape)} and "
            f"{list(videos.shape)}"
        )
    cosines = F.normalize(videos, dim=-1) @ F.normalize(texts, dim=-1).T
    best = cosines.max(1).values
    return Matches((cosines == best[:, None]).int().argmax(1), best)


def keep_share(similarity: Tensor, share: float) -> Tensor:
    """Returns the clips with the best matches: int64, ``round(share N)`` numbers, ascending.

    Of equal similarities the lower number is kept. A larger share keeps all that a smaller one keeps.

    Args:
        similarity: ``[N]``. share: from 0 to 1, p of the paper (0.9).
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected a number from 0 to 1, got {share}")
    count = int(share * len(similarity) + 0.5)
    return similarity.argsort(descending=True, stable=True)[:count].sort().values


def bag_prompts(name: str, texts: Sequence[str]) -> list[str]:
    """Returns the prompts of a bag: ``a photo of a NAME. TEXT.`` for each text, or the first part alone without any."""
    return [f"a photo of a {name}. {text}." for text in texts] or [f"a photo of a {name}."]


def draw_texts(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Draws ``size`` of ``count`` texts, int64 ``[size]``.

    A short bag is repeated as a whole as often as it fits, and what is missing is drawn without replacement.
    """
    if count < 1 or size < 1:
        raise ValueError(f"count: expected at least one text, and size at least 1, got {count} and {size}")
    rest = torch.randperm(count, generator=generator)[: size % count if size >= count else size]
    return torch.cat([torch.arange(count).repeat(size // count), rest])


def bag_loss(videos: Tensor, texts: Tensor, matches: Tensor, *, form: Form = "sum", sigma: float = 0.02) -> Tensor:
    r"""Returns the contrastive loss between clips and bags of texts, 0-d.

    With :math:`s_{ijn} = \cos(v_i, t_{jn}) / \sigma` and :math:`P_i` the bags j whose match is that of clip i,

    .. math:: L = -\frac1B \sum_i \log \frac{\sum_{j \in P_i} \sum_n e^{s_{ijn}}}{\sum_k \sum_n e^{s_{ikn}}}

    ========== ===========================================================================================
    "sum"      the equation (MIL-NCE)
    "pairwise" the mean over all pairs (i, j in P_i) of the equation with that one bag above the bar
    "instance" :math:`P_i = \{i\}`
    "max"      the best text of each bag alone, above and below the bar (MIL-Max)
    "one"      the first text of each bag alone (NCE)
    ========== ===========================================================================================

    With one text per bag and no two equal matches all of them are InfoNCE from clips to texts. Logits are in float32 at
    least.

    Args:
        videos: ``[B, d]``. texts: ``[B, n, d]``. matches: int64 ``[B]``, t of each clip. form: see above.
        sigma: temperature.

    Source: arXiv 2303.08914, Eq. 2; "pairwise" is what its code computes.
    """
    if form not in get_args(Form):
        raise ValueError(f"form: expected one of {', '.join(get_args(Form))}, got {form!r}")
    if texts.dim() != 3 or len(texts) != len(videos) or matches.shape != (len(videos),) or texts.shape[1] == 0:
        raise ValueError(
            f"texts: expected [B, n, d] and matches [B] for videos {list(videos.shape)}, got {list(texts.shape)} and "
            f"{list(matches.shape)}"
        )
    with torch.autocast(videos.device.type, enabled=False):
        v, t = _unit_rows(videos, texts)
        s = torch.einsum("id,jnd->ijn", v, t) / sigma
        if form == "max":
            s = s.amax(-1, keepdim=True)
        elif form == "one":
            s = s[..., :1]
        bags = s.logsumexp(-1)  # [B, B]
        log_share = bags - bags.logsumexp(1, keepdim=True)
        positive = matches[:, None] == matches[None]
        if form == "instance":
            return -log_share.diagonal().mean()
        if form == "pairwise":
            return -log_share[positive].mean()
        return -log_share.masked_fill(~positive, float("-inf")).logsumexp(1).mean()


def dictionary_loss(videos: Tensor, texts: Tensor, matches: Tensor, *, sigma: float = 0.02) -> Tensor:
    r"""Returns the cross-entropy of matched names among all names of the dictionary, 0-d.

    .. math:: L = -\frac1B \sum_i \log \frac{e^{\cos(v_i, t_{m_i}) / \sigma}}{\sum_{t \in D} e^{\cos(v_i, t) / \sigma}}

    It takes the matches for labels. Logits are in float32 at least.

    Args:
        videos: ``[B, d]``. texts: ``[D, d]``, the names. matches: int64 ``[B]``, m of each clip. sigma: temperature.

    Source: arXiv 2303.08914, its alternative to bags of texts.
    """
    if texts.dim() != 2 or matches.shape != (len(videos),):
        raise ValueError(
            f"texts: expected [D, d] and matches [B] for videos {list(videos.shape)}, got {list(texts.shape)} and "
            f"{list(matches.shape)}"
        )
    with torch.autocast(videos.device.type, enabled=False):
        v, t = _unit_rows(videos, texts)
        return F.cross_entropy(v @ t.T / sigma, matches)


def _unit_rows(videos: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both with rows of length 1, in the dtype of the videos, but float32 at least."""
    dtype = torch.promote_types(videos.dtype, torch.float32)
    return F.normalize(videos.to(dtype), dim=-1), F.normalize(texts.to(dtype), dim=-1)


class BagObjective(Objective):
    """The loss of :func:`bag_loss` for a model that trains its text tower.

    Several processes compare the clips and bags of all of them, and so have the loss and the gradients of one process
    with the whole batch. Parts of a step (``trainer.accumulate``) are compared part by part.

    Args:
        ids: of the prompts of every clip, int64 ``[n_i, length]`` each, by the number of the clip in its list.
        matches: int64 ``[N]``, of :func:`match_texts`.
        size: texts drawn per bag and step. form, sigma: see :func:`bag_loss`.
    """

    def __init__(
        self, ids: Sequence[Tensor], matches: Tensor, *, size: int = 16, form: Form = "sum", sigma: float = 0.02
    ) -> None:
        if len(ids) != len(matches):
            raise ValueError(f"ids: expected a bag for each of {len(matches)} clips, got {len(ids)} bags")
        self.ids, self.matches, self.size = ids, matches, size
        self.form, self.sigma = form, sigma

    def __call__(self, model: Any, batch: ClipBatch, seed: int) -> StepLoss:
        numbers, generator = _numbers_of(batch, model, "BagObjective"), make_generator("bags", seed=seed)
        bags = [self.ids[i] for i in numbers.tolist()]
        empty = next((i for i, bag in zip(numbers.tolist(), bags, strict=True) if len(bag) == 0), None)
        if empty is not None:
            raise ValueError(f"ids: expected at least one text for clip {empty}, got none")
        ids = torch.stack([bag[draw_texts(len(bag), self.size, generator)] for bag in bags]).to(batch.clips.device)
        texts = model.text(ids.flatten(0, 1), unit=True).unflatten(0, ids.shape[:2])
        videos, _ = model.embed(model.encode(batch.clips), seed=None, noise=None)  # no logits: classes are not read
        matches = self.matches[numbers].to(batch.clips.device)
        videos, texts, matches = _gather(videos), _gather(texts), _gather(matches)
        return StepLoss(bag_loss(videos, texts, matches, form=self.form, sigma=self.sigma), None)


class DictionaryObjective(Objective):
    """The loss of :func:`dictionary_loss` for a model that trains its text tower, which embeds all names in every step.

    Args:
        ids: of the prompts of the names, int64 ``[D, length]``. matches: int64 ``[N]``, the name of every clip by its
            number in the list. sigma: temperature.
    """

    def __init__(self, ids: Tensor, matches: Tensor, *, sigma: float = 0.02) -> None:
        if len(matches) and int(matches.max()) >= len(ids):
            raise ValueError(f"matches: expected numbers of {len(ids)} names, got {int(matches.max())}")
        self.ids, self.matches, self.sigma = ids, matches, sigma

    def __call__(self, model: Any, batch: ClipBatch, seed: int) -> StepLoss:
        matches = self.matches[_numbers_of(batch, model, "DictionaryObjective")].to(batch.clips.device)
        texts = model.text(self.ids.to(batch.clips.device), unit=True)
        videos, _ = model.embed(model.encode(batch.clips), seed=None, noise=None)  # no logits: classes are not read
        return StepLoss(dictionary_loss(videos, texts, matches, sigma=self.sigma), None)


def _numbers_of(batch: ClipBatch, model: Any, owner: str) -> Tensor:
    """Returns the numbers of a batch's clips, on the CPU; raises ValueError if there are none, or no text tower."""
    if batch.numbers is None or model.text is None:
        lacking = "clip numbers in its batches" if batch.numbers is None else "a model with text='trained'"
        raise ValueError(f"{owner}: expected {lacking}, got none")
    return batch.numbers.cpu()


def _gather(x: Tensor) -> Tensor:
    """Returns the rows of all processes, in their order; of one process ``x`` itself.

    The gradient goes to the rows of this process alone, times the number of processes, whose mean DDP takes.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    world = dist.get_world_size()
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world)]
    dist.all_gather(parts, x.detach().contiguous())
    own = x.view_as(x)
    if own.requires_grad:
        own.register_hook(lambda gradient: gradient * world)
    parts[dist.get_rank()] = own
    return torch.cat(parts)
