"""X-CLIP: messages between frames, an integration transformer over them, and class texts that look at the video."""

from __future__ import annotations

from torch import Tensor, nn

from .config import XClipConfig, num_heads
from .drop_path import insert_drop_path
from .frame_integration import FrameIntegration
from .messages import insert_messages
from .text_tower import TextTower
from .video_model import Tokens, VideoModel
from .video_prompts import VideoPrompts

__all__ = ["XClip"]


class XClip(VideoModel):
    r"""X-CLIP (Ni et al. 2022).

    .. math:: h_t = \mathrm{Tower}(\mathrm{frame}_t, \mathrm{messages}), \quad
              v = \mathrm{mean}_t(\mathrm{MIT}(H + e) + H), \quad
              \mathrm{logit}_i = \lambda \cos(v, \hat c_i(\mathrm{video}))

    with :class:`FrameMessages` in every block of the tower, :class:`FrameIntegration` and :class:`VideoPrompts`. Each
    of the three may be left out. Without prompts the head is that of every other model.

    Token merging applies inside the tower. Messages never merge. The prompts read the mean over frames of each place
    of the image: a merged token stands at every place that it covers, so it counts by its size.

    Parameters without the text tower: 133.16 M (B/32), 131.50 M (B/16), 452.02 M (L/14).

    Args:
        config: its options. visual: the tower, patched in place. logit_scale: CLIP's factor of cosines.
        text: the text tower, if the model holds one.

    Source: arXiv 2208.02816.
    """

    config_class = XClipConfig
    rows = "class"
    unit_texts = False
    templates = "none"

    def __init__(
        self,
        config: XClipConfig,
        visual: nn.Module,
        logit_scale: Tensor | float = 100.0,
        text: TextTower | None = None,
    ) -> None:
        if config.head == "linear" and config.prompt_layers:
            raise ValueError(
                f"prompt_layers: a linear head has no class texts to prompt; expected 0, got {config.prompt_layers}"
            )
        super().__init__(config, visual, logit_scale, text)
        if config.messages:
            insert_messages(self.backbone.tower, config.frames)
        if config.drop_path:
            insert_drop_path(self.backbone.tower, config.drop_path)
        width, tower_width = self.width, self.backbone.host.width(self.backbone.tower)
        self.integration, self.prompts = None, None
        if config.layers:
            heads = num_heads(config.heads, width)
            self.integration = FrameIntegration(width, config.layers, heads, config.frames)
        if config.prompt_layers:
            heads = num_heads(config.prompt_heads, width, "prompt_heads")
            self.prompts = VideoPrompts(tower_width, width, config.prompt_layers, heads, config.alpha)

    def encode(self, clips: Tensor, trace: bool = False) -> Tokens:
        read = None if self.prompts is None else self.prompts.read
        tokens = self.backbone(clips, rows=self.rows, trace=trace, read=read)
        self._check_tokens(tokens.x, "clips")
        return tokens

    def embed(self, tokens: Tokens, *, seed: Tensor | None, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
        frames = tokens.frame
        return frames.mean(1) if self.integration is None else self.integration(frames), None

    def texts_of(self, tokens: Tokens, seed: Tensor | None = None) -> Tensor | None:
        texts = super().texts_of(tokens, seed)
        if self.prompts is None or texts is None or len(texts) == 0:
            return texts
        if tokens.context is None:
            raise ValueError(
                "tokens: prompts read every place of a clip; expected the result of encode(), got tokens alone"
            )
        return self.prompts(texts, tokens.context)
