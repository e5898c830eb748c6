"""The questions that alt asks about a foreign model. One host answers them for one family of models.

Nothing outside ``alt.hosts`` knows the attribute names of a foreign model. ``docs/hosts.md`` shows how to add a host.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .merging import TrunkMerge
from .modules import qualified_name

__all__ = ["COMPONENTS", "BlockParts", "Embedded", "Host", "HostAttention", "KeyProjection", "Projected"]

COMPONENTS = ("patch_embedding", "attention", "mlp", "block", "pooling", "other")
"""Answers of :meth:`Host.component`; "block" is the rest of a transformer block."""


class Embedded(NamedTuple):
    """Tokens before the first block: protected tokens first, then patches in row-major order.

    x: ``[B, N, C]``. size: float32 ``[B, N]``, the patches behind each token, 0 for padding; None: 1 each.
    positions: float32 or float64 ``[B, N, P]``, coordinates for attention that rotates q and k, 0 for protected tokens;
    None: positions are part of x. The angles are linear in them, so a merged token lies at the mean of its patches.
    """

    x: Tensor
    size: Tensor | None = None
    positions: Tensor | None = None


class Projected(NamedTuple):
    """Queries, keys and values of a block.

    q, k, v: ``[B, H, N, D]`` in one dtype, normalised and rotated as the host does. scale: of the logits, None for
    ``D ** -0.5``. keys: ``[B, H, N, D]``, compared by matching: k before rotation, in its own dtype.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float | None
    keys: Tensor


class KeyProjection(NamedTuple):
    """The linear map from a block's normed input to ``Projected.keys``: ``x W^T + b``, split into H heads of D.

    weight: ``[H D, C]``. bias: ``[H D]`` or None. num_heads: H.
    """

    weight: Tensor
    bias: Tensor | None
    num_heads: int


NORMALISED_KEYS = (
    "metric='projection' needs keys that are a linear map of the tokens, but this attention normalises its keys before "
    "their mean over heads; use metric='keys'"
)


class HostAttention(ABC):
    """Self-attention of one block. It is created for every call, and holds the module and no results."""

    @abstractmethod
    def can_fuse(self) -> bool:
        """Returns True if reading the module's weights replaces calling it.

        False if the module carries hooks, is a wrapper or an unknown class, or drops attention weights.
        """

    @abstractmethod
    def project(self, x: Tensor, positions: Tensor | None) -> Projected:
        """Projects ``x`` ``[B, N, C]`` with the module's weights. Called only if :meth:`can_fuse`."""

    @abstractmethod
    def join_heads(self, y: Tensor, x: Tensor) -> Tensor:
        """Applies what follows ``softmax(q k^T) v``: ``y`` ``[B, H, N, D]`` to ``[B, N, C]``; ``x`` as in project."""

    @abstractmethod
    def project_keys(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """Returns ``Projected.keys`` without gradient, for modules whose keys stay inside their call.

        With positions, which only a host that :meth:`Host.rotates` gets, the keys are rotated: ``Projected.k``.
        """

    def key_projection(self) -> KeyProjection:
        """Returns the map that makes the keys, adapters included. May be called before and after the module's call.

        Raises:
            TypeError: the keys are no linear map of x, or it is not known.
        """
        raise TypeError(
            f"metric='projection' needs keys that are a linear map of the tokens, which {type(self).__name__} does not "
            "tell; use metric='keys'"
        )

    def project_beside(
        self, x: Tensor, positions: Tensor | None, make: Callable[[], tuple[Tensor, Tensor | None]]
    ) -> tuple[Projected, Tensor]:
        """Returns :meth:`project`, and ``x weight^T + bias`` without gradient, from one reading of x if possible.

        ``make`` returns weight and bias. It is called after the modules whose weights it reads.
        """
        projected = self.project(x, positions)
        with torch.no_grad():
            return projected, F.linear(x, *make())

    @abstractmethod
    def call_module(self, x: Tensor, bias: Tensor | None, positions: Tensor | None) -> Tensor:
        """Calls the module itself, hooks included, with ``bias`` ``[B, N]`` added to the logits of the keys."""


class BlockParts(NamedTuple):
    """The parts of a block.

    ::

        y   = after_attention(attention(norm_1(x)))          pre-norm
        out = x + y + feed_forward(norm_2(x + y))

        z   = norm_1(x + after_attention(attention(x)))      post-norm
        out = norm_2(z + feed_forward(z))

    Attributes:
        norm_1, norm_2: the norms before attention and before the MLP.
        attention: see :class:`HostAttention`.
        after_attention: norm, residual scale and drop path of the attention branch, in the host's order.
        feed_forward: MLP, residual scale and drop path of the second branch.
        guests: makes tokens ``[B, m, C]`` from x ``[B, N, C]`` that join q, k and v of this block and are dropped
            after its attention (X-CLIP's messages). They have size 1, are not rotated and never merge. None: there are
            none.
        post_norm: the norms follow the sums, and z is merged.
    """

    norm_1: nn.Module
    attention: HostAttention
    after_attention: Callable[[Tensor], Tensor]
    norm_2: nn.Module
    feed_forward: Callable[[Tensor], Tensor]
    guests: Callable[[Tensor], Tensor] | None = None
    post_norm: bool = False


class Host(ABC):
    """Answers the questions for one family of image towers. Subclasses have no state, so patched models pickle.

    Attributes:
        name: of the host, ``"open_clip"``.
        supports: towers that can be patched, in words: ``"open_clip's VisionTransformer"``.
        patched: class of a foreign module -> its importable subclass that merges, see :mod:`alt.hosts.merging`.
        layer_norms: qualified names of classes that :meth:`is_layer_norm` accepts.
    """

    name: str
    supports: str
    patched: Mapping[type, type]
    layer_norms: frozenset[str] = frozenset({"torch.nn.modules.normalization.LayerNorm"})

    # --- where things are ---

    @abstractmethod
    def find_tower(self, model: nn.Module) -> nn.Module | None:
        """Returns the image tower of a model, or the tower itself; None for a model of another family."""

    @abstractmethod
    def check_tower(self, tower: nn.Module) -> None:
        """Raises TypeError, which names the supported and the actual class, unless every part of the tower is known."""

    @abstractmethod
    def parts(self, tower: nn.Module) -> list[tuple[str, nn.Module]]:
        """Returns the modules whose class is exchanged by patching, each with its role in words."""

    @abstractmethod
    def blocks(self, tower: nn.Module) -> Sequence[nn.Module]:
        """Returns the transformer blocks in order."""

    @abstractmethod
    def block_parts(self, block: nn.Module, tower: nn.Module, index: int) -> BlockParts:
        """Returns the parts of block number ``index``; some weights may lie in the tower (rotary frequencies).

        ``block`` is the running module. Inside a wrapper it is not ``blocks(tower)[index]``.

        Raises:
            TypeError: its attention is of a kind whose keys are not known.
        """

    def sequence_first(self, tower: nn.Module) -> bool:
        """Returns True if the blocks take and return ``[N, B, C]``. alt transposes at their calls, as hooks expect."""
        return False

    def rotates(self, tower: nn.Module) -> bool:
        """Returns True if attention rotates q and k by the positions of their tokens (``Embedded.positions``)."""
        return False

    def is_layer_norm(self, norm: nn.Module) -> bool:
        """Returns True if a norm computes LayerNorm and nothing else, so that it may be fused."""
        return qualified_name(norm) in self.layer_norms

    @abstractmethod
    def component(self, path: str) -> str:
        """Returns the entry of :data:`COMPONENTS` for a parameter or module, by its path in the tower."""

    # --- sizes ---

    @abstractmethod
    def image_size(self, tower: nn.Module) -> tuple[int, int]:
        """Returns the height and width in pixels that the tower was built for."""

    @abstractmethod
    def grid(self, tower: nn.Module) -> tuple[int, int]:
        """Returns the number of patches down and across at that size."""

    @abstractmethod
    def num_protected(self, tower: nn.Module) -> int:
        """Returns the number of leading tokens that are not patches and never merge: class, distillation, registers."""

    def num_tokens(self, tower: nn.Module) -> int | None:
        """Returns the number of tokens at the native image size, protected ones included; None if there is none."""
        height, width = self.grid(tower)
        return self.num_protected(tower) + height * width

    @abstractmethod
    def width(self, tower: nn.Module) -> int:
        """Returns the number of channels of the tokens."""

    # --- the forward ---

    @abstractmethod
    def embed(self, tower: nn.Module, images: Tensor) -> Embedded:
        """Turns images ``[B, 3, H, W]`` into the tokens that enter the first block.

        A tower with other inputs gets them as one object, as its patched class passes them to ``encode``.
        """

    def run_blocks(self, tower: nn.Module, x: Tensor, merge: TrunkMerge) -> Tensor:
        """Sends tokens through the blocks. If the blocks sit in a module that is called itself, the host calls it."""
        return merge.run(x, self.blocks(tower), self.checkpointing(tower))

    @abstractmethod
    def pool(self, tower: nn.Module, x: Tensor, size: Tensor | None) -> Tensor:
        """Pools the last block's tokens ``[B, n, C]`` to the model's embedding of an image, ``[B, d]``.

        ``size`` ``[B, n]`` is the number of patches behind each token, the weight of a token in a mean.
        """

    @abstractmethod
    def project(self, tower: nn.Module, x: Tensor, size: Tensor | None) -> Tensor:
        """Returns ``[B, 1 + n - num_protected, d]`` in the joint space: :meth:`pool`, then every region.

        Each region gets the final norm and projection that the pooled token gets.
        """

    @abstractmethod
    def joint_width(self, tower: nn.Module) -> int:
        """Returns d, the number of channels of the joint space.

        Raises:
            TypeError: the tower has no projection that applies to single tokens.
        """

    def checkpointing(self, tower: nn.Module) -> bool:
        """Returns True if the blocks are recomputed in the backward."""
        return False

    def set_checkpointing(self, tower: nn.Module, enable: bool) -> None:
        """Switches recomputation of the blocks on or off.

        Raises:
            TypeError: it is to be switched on and the tower has no such switch.
        """
        if enable:
            raise TypeError(f"gradient checkpointing: {self.supports} has no switch for it; leave it off")

    def arguments(self, tower: nn.Module, images: Tensor) -> Sequence[Any]:
        """Returns the arguments of the tower's own call for images ``[B, 3, H, W]``."""
        return (images,)

    def encode_image(self, model: Any, images: Tensor) -> Tensor:
        """Returns a CLIP's own embeddings ``[B, d]`` of images ``[B, 3, H, W]``, in the space of its texts."""
        return model.encode_image(images)

    def squeezes(self, model: Any) -> bool:
        """Returns True if a CLIP's pictures are resized to its image size whatever their proportions, not cropped."""
        return False

    def prepare_trace(self, tower: nn.Module) -> None:
        """Changes a copy of the tower that will run on fake tensors, if it keeps tensors or reads their values."""
        return None

    # --- weights and pictures ---

    def describe(self, tower: nn.Module) -> dict[str, Any]:
        """Returns the sizes from which :meth:`build` makes a tower with the same parameters, as JSON values.

        Raises:
            TypeError: the host cannot build towers, so models with such a tower cannot be saved as one file.
        """
        raise TypeError(f"a model cannot be saved as one file with {self.supports}: the host has no describe()")

    def build(self, sizes: dict[str, Any], *, quick_gelu: bool) -> nn.Module:
        """Returns a tower of these sizes with random weights, on torch's default device."""
        raise TypeError(f"a tower of {self.supports} cannot be built: the host has no build()")

    def position_embedding(self, tower: nn.Module) -> nn.Parameter:
        """Returns the learned positions of the tokens.

        Raises:
            TypeError: the tower has none.
        """
        raise TypeError(f"{type(tower).__name__} has no learned positions")

    def no_decay(self, tower: nn.Module) -> list[nn.Parameter]:
        """Returns the tower's parameters that an optimiser should not decay: learned positions and learned tokens.

        Vectors (biases, norms, a class token ``[C]``) never decay and may be left out.
        """
        try:
            return [self.position_embedding(tower)]
        except TypeError:
            return []

    @abstractmethod
    def mean_std(self, tower: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns the mean and standard deviation per channel that the tower expects of pictures in [0, 1]."""

    # --- the text tower ---

    def take_tower(self, model: nn.Module) -> nn.Module:
        """Returns the image tower of a CLIP, with a projection to the joint space that lies outside it put inside.

        A tower that is passed comes back as it is.
        """
        tower = self.find_tower(model)
        assert tower is not None, "asked of the host that found a tower"
        return tower

    def source_name(self, model: nn.Module) -> str | None:
        """Returns where a model's weights come from, as a backbone's name (``hf:PATH``); None if it is not known."""
        return None

    def has_text(self, model: nn.Module) -> bool:
        """Returns True if the model has a text tower, so that :meth:`encode_text` works."""
        return False

    def text_modules(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """Returns the modules of the text tower by their paths in the model; by default all outside the image tower."""
        tower = self.find_tower(model)
        image = set() if tower is None or tower is model else set(tower.modules())  # all, where it was dropped
        return [(name, module) for name, module in model.named_modules() if module not in image]

    def encode_text(self, model: Any, ids: Tensor) -> Tensor:
        """Returns text embeddings ``[n, d]`` of token ids ``[n, length]``.

        Raises:
            TypeError: the model has no text tower.
        """
        raise TypeError(f"{type(model).__name__} has no text tower")

    def drop_tower(self, model: Any) -> None:
        """Removes the image tower and the scale of logits, if only the text tower is needed."""
        raise TypeError(f"{type(model).__name__} has no text tower")

    def describe_text(self, model: Any) -> dict[str, Any]:
        """Returns the sizes from which :meth:`build_text` makes a text tower with the same parameters, as JSON values.

        Raises:
            TypeError: the model has no text tower, or one of another kind.
        """
        raise TypeError(f"{type(model).__name__} has no text tower that a video model can hold")

    def build_text(self, sizes: dict[str, Any], *, quick_gelu: bool) -> nn.Module:
        """Returns a model without image tower whose text tower has these sizes, on torch's default device.

        Its buffers that are not saved are on the CPU, with their values.
        """
        raise TypeError(f"a text tower of {self.supports} cannot be built: the host has no build_text()")

    def token_embedding(self, model: Any) -> nn.Module:
        """Returns the module that turns token ids into vectors.

        Raises:
            TypeError: the model has no text tower.
        """
        raise TypeError(f"{type(model).__name__} has no text tower with a token embedding")
