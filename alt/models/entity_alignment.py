"""Aligns a frame's tokens to text entities and forms the frame's query from them (Eq. 4 to 6)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from alt_kernels import cosine_gumbel_assign

from .blocks import Mlp
from .heads import adopt_rows

__all__ = ["EntityAlignment"]


class EntityAlignment(nn.Module):
    r"""Lets every token choose one entity of a fixed corpus, and forms a frame's query from the chosen entities.

    .. math:: A_{ik} = \mathrm{softmax}_k\!\left(\frac{\lambda \cos(x_i, s_k)}{\tau} + \gamma_{ik}\right), \quad
              \hat A = \mathrm{onehot}(\arg\max A) + A - \mathrm{sg}(A), \quad Q = \mathrm{MLP}(\hat A S)

    The noise gamma is Gumbel(0, 1). It is not divided by tau, and it is drawn in training only. lambda is the
    similarity scale. The paper prints none, but without one the noise decides: the best of 913 entities is chosen in
    0.1 % of draws. The paper does not state the reduction from n aligned entities o_i to one query:

    ================= ==================================================================================
    "mean"            MLP(mean_i o_i), the default
    "mlp_then_mean"   mean_i MLP(o_i)
    "attn"            MLP(sum_i softmax_i(a o_i) o_i), a learned: d parameters more
    "set"             MLP(mean over the frame's distinct entities): how many tokens chose one does not count
    ================= ==================================================================================

    No reduction depends on the order or number of the tokens. With ``residual`` the MLP is ``o + mlp(o)``.
    The gradient goes to x and thus to the tower; the corpus gets none.

    Args:
        width: d.
        align_tokens: "regions+cls", or "cls" for the class token alone.
        reduction: see above. tau: temperature. gumbel: "train" or "off". hard: choose one entity, or mix them.
        residual: residual MLP whose output starts at zero.

    Source: arXiv 2311.15619, Eq. 4 to 6.
    """

    entities: Tensor

    def __init__(
        self,
        width: int,
        *,
        align_tokens: Literal["regions+cls", "cls"] = "regions+cls",
        reduction: Literal["mean", "mlp_then_mean", "attn", "set"] = "mean",
        tau: float = 1.0,
        gumbel: Literal["train", "off"] = "train",
        hard: bool = True,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.width = width
        self.align_tokens = align_tokens
        self.reduction = reduction
        self.tau = tau
        self.gumbel = gumbel
        self.hard = hard
        self.residual = residual
        self.mlp = Mlp(width, zero_output=residual)
        self.score = nn.Parameter(torch.zeros(width)) if reduction == "attn" else None
        self.register_buffer("entities", torch.empty(0, width))

    def set_entities(self, embeddings: Tensor) -> None:
        """Sets the corpus S ``[K, d]``: a constant buffer, saved with the model.

        Raises:
            TypeError: the embeddings are not a float tensor. ValueError: they are empty, not finite, or of wrong width.
        """
        if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
            got = embeddings.dtype if isinstance(embeddings, Tensor) else type(embeddings).__name__
            raise TypeError(f"corpus: expected float embeddings [K, {self.width}], got {got}")
        if embeddings.dim() != 2 or embeddings.shape[1] != self.width:
            raise ValueError(
                f"corpus: expected embeddings [K, {self.width}], as wide as the model's joint space, "
                f"got {list(embeddings.shape)}"
            )
        if embeddings.shape[0] == 0:
            raise ValueError("corpus: expected at least one entity, got none")
        if not embeddings.is_meta and not torch.isfinite(embeddings).all():
            raise ValueError("corpus: expected finite embeddings, got NaN or infinity")
        self.entities = embeddings.detach().to(self.entities).clone()

    def forward(
        self, x: Tensor, scale: Tensor | float, *, seed: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Aligns the tokens of every frame.

        Args:
            x: ``[B, T, n, d]``. scale: lambda. seed: 0-d int64 for the noise of training; None draws one.
            noise: ``[B, T, n_aligned, K]``, used in any mode instead of drawn noise.

        Returns:
            The queries ``[B, T, d]``, and the entity of every aligned token ``[B, T, n_aligned]`` int64.

        Raises:
            ValueError: there is no corpus.
        """
        if self.entities.shape[0] == 0:
            raise ValueError("corpus: entity queries need one; give corpus= to create_model, or call set_corpus")
        if self.align_tokens == "cls":
            x = x[:, :, :1]
        drawn: Any = noise
        if noise is None and self.training and self.gumbel == "train":
            drawn = "gumbel"
        assigned = cosine_gumbel_assign(
            x,
            self.entities,
            tau=self.tau / scale,
            hard=self.hard,
            noise=drawn,
            seed=seed if isinstance(drawn, str) else None,
        )
        return self._reduce(assigned.output, assigned.index), assigned.index

    def _reduce(self, aligned: Tensor, index: Tensor) -> Tensor:
        """Reduces entities ``[B, T, n, d]`` to queries ``[B, T, d]``."""
        if self.reduction == "mlp_then_mean":
            return self._mlp(aligned).mean(2)
        if self.score is not None:
            weight = (aligned @ self.score).softmax(2)
        elif self.reduction == "set":
            votes = (index[..., :, None] == index[..., None, :]).sum(-1).to(aligned.dtype)
            weight = votes.reciprocal()
            weight = weight / weight.sum(2, keepdim=True)  # the sum is the number of distinct entities
        else:
            return self._mlp(aligned.mean(2))
        return self._mlp((weight[..., None] * aligned).sum(2))

    def _mlp(self, x: Tensor) -> Tensor:
        return x + self.mlp(x) if self.residual else self.mlp(x)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        adopt_rows(self, state_dict, prefix, ("entities",))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"width={self.width}, entities={self.entities.shape[0]}, {self.align_tokens}, {self.reduction}"
