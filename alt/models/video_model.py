"""The base of all video models: a CLIP tower over frames, a module that forms one embedding of them, and a head."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from alt.errors import refuse_unordered

from .config import AltConfig
from .heads import ClassHead
from .hub import HubModel
from .prompts import draw, ensemble
from .region_encoder import RegionEncoder, Tokens
from .strategy import apply_strategy
from .text import TextEncoder, TextSource
from .text_tower import TextTower

__all__ = ["Tokens", "VideoModel", "VideoOutput"]


class VideoOutput(NamedTuple):
    """logits: ``[B, C]``. embedding: z ``[B, d]``. index: int64 ``[B, T, n_aligned]``, the entity of each aligned
    token, or None without alignment."""

    logits: Tensor
    embedding: Tensor
    index: Tensor | None = None  # type: ignore[assignment]  # tuple.index, which nobody calls here


class VideoModel(nn.Module, HubModel):
    """Base of ALT and of its baselines. A subclass maps tokens to z in :meth:`embed`.

    ``forward(clips)`` is ``forward_tokens(encode(clips))``, so a frozen tower's tokens can be computed once.

    Args:
        config: the model's configuration, an instance of ``config_class``.
        visual: the CLIP image tower, which is patched in place.
        logit_scale: CLIP's factor of cosines (not its logarithm), a buffer that is not trained.
        text: the text tower; None: the model holds the embeddings of class texts alone.

    Attributes:
        backbone: the tower; its parameters are named ``backbone.*``.
        text: the text tower or None; its parameters are named ``text.*``.
        head: scores of the classes. classes: their names, [] before :meth:`set_classes`.
        joint_text_source: the text encoder that belongs to the image tower, so that its texts and the frames share one
            space. A corpus must be of the same encoder, also before there are classes. None if it is not known, or has
            random weights.
        class_text_source: encoder and templates with which the class names were embedded, so that further names can be
            embedded alike. None if they came as embeddings alone, or for a linear head.
    """

    config_class: type[Any] = AltConfig
    rows: Literal["all", "class"] = "all"  # which rows of a frame the model reads; "class" saves projecting the others
    unit_texts = True  # class texts have length 1; False: the length that the text tower gives them
    templates: str | None = None  # the published prompts of the class texts; None: those of the CLIP
    logit_scale: Tensor
    template_rows: Tensor | None  # [P, C, d], the class texts in every template, of which a training step draws one

    def __init__(
        self,
        config: Any,
        visual: nn.Module,
        logit_scale: Tensor | float = 100.0,
        text: TextTower | None = None,
    ) -> None:
        super().__init__()
        if (config.text == "cached") != (text is None):
            raise ValueError(f"text: expected {'no tower' if text else 'a text tower'} with text={config.text!r}")
        if text is not None and config.head == "linear":
            raise ValueError(f"text: a linear head reads no class texts; expected 'cached', got {config.text!r}")
        if config.prompting != "ensemble":
            _check_prompting(config)
        self._config = config
        self.backbone = RegionEncoder(
            visual,
            config.r,
            inflection=config.inflection,
            prop_attn=config.prop_attn,
            grad_checkpointing=config.grad_checkpointing,
        )
        self.text = text
        self.head = ClassHead(config.head, self.width)
        self.register_buffer("logit_scale", torch.as_tensor(logit_scale, dtype=torch.get_default_dtype()).detach())
        self.register_buffer("template_rows", None, persistent=False)
        self.classes: list[str] = []
        self.class_text_source: TextSource | None = None
        self.joint_text_source: TextSource | None = None
        apply_strategy(self, config.strategy)

    @property
    def config(self) -> Any:
        """Returns the configuration. Its ``r`` is read from the handle, which owns it."""
        r = self.backbone.r
        return self._config if self._config.r == r else dataclasses.replace(self._config, r=r)

    def change_config(self, **changes: Any) -> None:
        """Records changed fields of the configuration. The caller changes the modules."""
        self._config = dataclasses.replace(self._config, **changes)

    @property
    def tower_frames(self) -> int | None:
        """Returns the frames per clip that pass the tower one by one; None if all frames form one sequence."""
        return self._config.frames

    @property
    def width(self) -> int:
        """Returns d, the channels of the joint space."""
        return self.backbone.width

    @property
    def r(self) -> int | float | tuple[int, ...]:
        """Tokens merged away per block. May be set at any time, here or on the handle, without retraining."""
        return self.backbone.r

    @r.setter
    def r(self, value: int | float | Sequence[int]) -> None:
        self.backbone.r = value

    def encode(self, clips: Tensor, trace: bool = False) -> Tokens:
        """Runs the tower, with final norm and projection of all tokens that the model reads.

        Args:
            clips: ``[B, T, 3, H, W]`` float, CLIP-normalised, T = ``config.frames``.
            trace: return all tokens, and the source map.

        Returns:
            Tokens: x ``[B, T, n, d]``, size ``[B, T, n]``, source ``[B, T, N]`` or None.

        Raises:
            TypeError: clips are not a float tensor. ValueError: the number of frames or the image size differs.
        """
        tokens = self.backbone(clips, rows=self.rows, trace=trace)
        self._check_tokens(tokens.x, "clips")
        return tokens

    def embed(self, tokens: Tokens, *, seed: Tensor | None, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Returns z ``[B, d]`` of tokens, and the index of the aligned entities or None. Subclasses implement it."""
        raise NotImplementedError(f"{type(self).__name__} has no embed()")

    @property
    def trains_texts(self) -> bool:
        """Returns True if training changes how the text tower embeds the classes: its weights or learned vectors."""
        return self.text is not None and (self.config.text == "trained" or self.text.prompt_adapter is not None)

    def texts_of(self, tokens: Tokens, seed: Tensor | None = None) -> Tensor | None:
        """Returns the class texts of this call, ``[C, d]``, or ``[B, C, d]`` if the videos change them.

        In training, a text tower that learns embeds them anew, and with ``prompting="random"`` they are those of the
        template that ``seed`` draws. In evaluation they are those of the head, which :meth:`refresh_texts` keeps
        current. None for a linear head.

        Raises:
            ValueError: one template is to be drawn, and the classes were set by their embeddings alone.
        """
        if self.config.head == "linear":
            return None
        if self.training and self.trains_texts and len(self.text.ids):  # type: ignore[union-attr]
            return self.text(unit=self.unit_texts)  # type: ignore[misc]
        if self.training and self.config.prompting == "random" and self.classes:
            if self.template_rows is None:
                raise ValueError(
                    "prompting: 'random' draws one template per training step, and the classes were set without; "
                    "name_classes(names, encoder, templates) embeds them"
                )
            return draw(self.template_rows, int(torch.randint(2**62, ()) if seed is None else seed))
        return self.head.embeddings

    def refresh_texts(self) -> None:
        """Embeds the class texts with the text tower that the model holds; without one it does nothing.

        :meth:`train` calls it on the way into evaluation, and :func:`alt.save_model` before it writes. Call it after
        changing weights of the text tower in evaluation mode.
        """
        if self.text is not None and len(self.text.ids):
            self.head.set_classes(len(self.text.ids), self.text.embed(unit=self.unit_texts))

    def train(self, mode: bool = True) -> Self:
        leaves = self.training and not mode
        super().train(mode)
        if leaves and self.trains_texts:
            self.refresh_texts()
        return self

    def forward_tokens(
        self, tokens: Tensor | Tokens, *, seed: Tensor | None = None, noise: Tensor | None = None
    ) -> VideoOutput:
        """Runs everything after the tower.

        Args:
            tokens: ``[B, T, n, d]``, or the result of :meth:`encode`.
            seed: 0-d int64 tensor that decides the noise of this call; None draws one. Evaluation and models without
                noise ignore it.
            noise: ``[B, T, n_aligned, K]``, used in training and evaluation instead of drawn noise.

        Returns:
            VideoOutput.
        """
        if not isinstance(tokens, Tokens):
            tokens = Tokens(tokens)
        self._check_tokens(tokens.x, "tokens")
        z, index = self.embed(tokens, seed=seed, noise=noise)
        return VideoOutput(self.head(z, self.logit_scale, self.texts_of(tokens, seed)), z, index)

    def forward(self, clips: Tensor, *, seed: Tensor | None = None, noise: Tensor | None = None) -> VideoOutput:
        """Maps clips ``[B, T, 3, H, W]`` to logits ``[B, C]``; arguments as in :meth:`forward_tokens`."""
        return self.forward_tokens(self.encode(clips), seed=seed, noise=noise)

    def set_classes(
        self, names: Sequence[str], embeddings: Tensor | None = None, texts: TextSource | None = None
    ) -> None:
        """Sets the classes to score, which are saved with the model.

        A linear head is reinitialised and needs no embeddings.

        Args:
            names: C names. embeddings: ``[C, d]``, their text embeddings.
            texts: how they were embedded (``encoder.source(templates)``), so that new classes can be embedded in the
                same way; None: not known.

        Raises:
            TypeError, ValueError: there are no names, or the embeddings do not fit them.
        """
        refuse_unordered(names, "names")
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"names: expected a sequence of class names, got {names!r:.60}")
        if len(names) == 0:
            raise ValueError("names: expected at least one class, got none")
        self.head.set_classes(len(names), embeddings)
        self.classes = list(names)
        self.class_text_source = texts
        self.template_rows = None
        if self.text is not None:
            self.text.set_ids(None)

    def name_classes(
        self, names: Sequence[str], encoder: TextEncoder | None, templates: str | Sequence[str] | None = None
    ) -> None:
        """Sets the classes by their names alone. A linear head is reinitialised.

        Args:
            names: C names.
            encoder: embeds them, or, if the model holds a text tower, makes the ids that this tower embeds; a linear
                head needs none.
            templates: of the texts, see :mod:`alt.models.prompts`; None: those of the model, "none" for learned
                vectors, or "alt16".

        Raises:
            TypeError, ValueError: the names or the templates do not fit. A trained text tower takes one template.
        """
        if templates is None:
            templates = "none" if self.config.prompting == "learned" else self.templates or "alt16"
        if self.config.head == "linear":
            self.set_classes(names)
            return
        if encoder is None:
            raise TypeError(f"encoder: a {self.config.head} head needs one for the texts of its classes, got None")
        if self.text is None and self.config.prompting == "random":
            stack = encoder.embed_templates(list(names), templates, unit=self.unit_texts)
            self.set_classes(names, ensemble(stack, self.unit_texts), encoder.source(templates))
            self.template_rows = stack.to(self.head.embeddings)
        elif self.text is None:
            embedded = encoder.embed_classes(list(names), templates, unit=self.unit_texts)
            self.set_classes(names, embedded, encoder.source(templates))
        else:
            ids = encoder.tokenise_classes(list(names), templates)
            if len(ids) > 1:
                raise ValueError(
                    f"templates: a model with a text tower reads one text per class, got {len(ids)} templates"
                )
            rows = self.text.embed(ids[0], unit=self.unit_texts)
            self.set_classes(names, rows, encoder.source(templates))
            self.text.set_ids(ids[0])

    @property
    def text_source(self) -> TextSource | None:
        """Returns ``joint_text_source`` under its old name, for one release."""
        warnings.warn("model.text_source is now model.joint_text_source", DeprecationWarning, stacklevel=2)
        return self.joint_text_source

    @property
    def class_texts(self) -> TextSource | None:
        """Returns ``class_text_source`` under its old name, for one release."""
        warnings.warn("model.class_texts is now model.class_text_source", DeprecationWarning, stacklevel=2)
        return self.class_text_source

    def is_backbone_parameter(self, name: str) -> bool:
        """Returns True if a parameter is CLIP's own, and so trained at the small rate.

        Modules added to the tower (adapters, LoRA) have a name with a part that contains "adapter" or "lora_".
        """
        parts = [part for part in name.split(".") if part not in ("_orig_mod", "module", "_fsdp_wrapped_module")]
        return parts[0] in ("backbone", "text") and not any("adapter" in part or "lora_" in part for part in parts[1:])

    def _check_tokens(self, x: Tensor, name: str) -> None:
        if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[-1] != self.width or 0 in x.shape:
            got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{name}: expected tokens [B, {self._config.frames}, n, {self.width}], got {got}")
        if x.shape[1] != self._config.frames:
            raise ValueError(
                f"{name}: expected {self._config.frames} frames per clip, as the model was made for, got {x.shape[1]}"
            )


def _check_prompting(config: Any) -> None:
    """Raises ValueError if the class texts cannot be made as ``prompting`` says."""
    wanted = "a head with texts," if config.head == "linear" else ""
    if config.prompting == "random" and config.text != "cached":
        wanted = "text='cached', whose templates are embedded once,"
    if config.prompting == "learned" and config.text == "cached":
        wanted = "text='held' or 'trained', whose tower reads the learned vectors,"
    if wanted:
        raise ValueError(
            f"prompting: {config.prompting!r} needs {wanted} got head={config.head!r} with text={config.text!r}"
        )
