"""Vision transformers with token merging: patching of CLIP models and what a forward pass costs.

    handle = alt.patch_model(model, r=8)  # every block of the image tower now merges 8 tokens
    handle.remove()                       # bit for bit the model of before

Names are resolved on first use, so ``import alt`` needs neither open_clip nor a compiled library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import attach

if TYPE_CHECKING:
    from alt_kernels import __version__ as __version__

    from .corpus import Corpus as Corpus
    from .cost import CostReport as CostReport
    from .cost import count_macs as count_macs
    from .cost import schedule_for as schedule_for
    from .evaluate import benchmark as benchmark
    from .models import AltConfig as AltConfig
    from .models import TextEncoder as TextEncoder
    from .models import VideoModel as VideoModel
    from .models import create_model as create_model
    from .models import create_text_encoder as create_text_encoder
    from .models import list_models as list_models
    from .models import load_model as load_model
    from .models import save_model as save_model
    from .patch import PatchHandle as PatchHandle
    from .patch import get_handle as get_handle
    from .patch import patch_clip as patch_clip
    from .patch import patch_model as patch_model
    from .patch import supported_hosts as supported_hosts
    from .patch import unpatch as unpatch
    from .train import TrainConfig as TrainConfig
    from .train import fit as fit
    from .train import load_config as load_config

__getattr__, __dir__, __all__ = attach(__name__)
