"""``from_pretrained``, ``save_pretrained`` and ``push_to_hub`` of every video model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE

from alt.files import replacing

__all__ = ["HubModel"]

_CARD = """---
{{ card_data }}
---

A video model of [alt-kernels]({{ repo_url }}).

```python
from alt.models import VideoModel

model = VideoModel.from_pretrained("{{ repo_id | default("OWNER/NAME", true) }}")
```
"""


class HubModel(
    PyTorchModelHubMixin,
    library_name="alt-kernels",
    repo_url="https://github.com/alt-kernels/alt-kernels",
    paper_url="https://arxiv.org/abs/2311.15619",
    pipeline_tag="video-classification",
    tags=["clip", "token-merging"],
    model_card_template=_CARD,
):
    """Models on the Hugging Face Hub or in a folder: the file of :func:`alt.models.save_model` and a config.json.

    ``model.save_pretrained(folder)`` and ``model.push_to_hub("OWNER/NAME")`` write model.safetensors, config.json and a
    model card. ``VideoModel.from_pretrained(folder or "OWNER/NAME")`` returns the model in evaluation mode, with its
    classes and corpus. It also reads the folder of a finished ``alt train`` run.
    """

    _hub_mixin_config: Any = {}  # noqa: RUF012  (the mixin's own name; `_save_pretrained` writes the configuration)

    def _save_pretrained(self, save_directory: Path) -> None:
        from .weights import read_header, save_model

        header = read_header(save_model(self, save_directory / SAFETENSORS_SINGLE_FILE))  # type: ignore[arg-type]
        readable = {"family": header["family"], **header["config"]}
        with replacing(save_directory / CONFIG_NAME, "the configuration") as partial:
            partial.write_text(json.dumps(readable, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, config: Any = None, **download: Any
    ) -> Any:
        """Raises ValueError if the file holds a model of another class. ``config`` is the file's own: it is ignored."""
        from .weights import load_model

        if os.path.isdir(model_id):
            path = os.path.join(model_id, SAFETENSORS_SINGLE_FILE)
        else:
            path = hf_hub_download(repo_id=model_id, filename=SAFETENSORS_SINGLE_FILE, **download)
        model = load_model(path, map_location).eval()
        if not isinstance(model, cls):
            raise ValueError(f"{path} holds a {type(model).__name__}, not a {cls.__name__}")
        return model
