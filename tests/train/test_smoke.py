"""Two steps of every shipped configuration: all parameters that should learn get a gradient, and the run is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import jobs


def smoke_runs(folder: str, chosen: list[str]) -> dict[str, list[str]]:
    """Name -> what is wrong with its two steps."""
    from lightning.pytorch.callbacks import Callback

    from alt.train import fit, load_config
    from alt.train.smoke import shrink

    wrong: dict[str, list[str]] = {}

    class Gradients(Callback):
        def on_before_optimizer_step(self, trainer: object, learner: object, *_: object) -> None:
            for name, parameter in learner.model.named_parameters():  # type: ignore[attr-defined]
                if parameter.requires_grad and parameter.grad is None:
                    wrong[current].append(f"no gradient: {name}")

    for current in chosen:
        wrong[current] = []
        result = fit(
            shrink(load_config(current))[0], Path(folder) / current, say=lambda line: None, callbacks=[Gradients()]
        )
        if result.steps != 2 or not result.weights.is_file():
            wrong[current].append(f"{result.steps} steps, weights: {result.weights.is_file()}")
    return wrong


# One of every kind; the others differ in numbers only.
KINDS = [
    "entity-world-cpu",
    "alt-b16-ssv2-16f",
    "alt-l14-hmdb-2shot",
    "alt-b16-k600-zero-shot",
    "alt-b16-ucf-linear-probe-split1",
    "components-none-k400-8f",
    "corpus-none-k400-8f",
    "corpus-scene-k400-8f",
    "strategy-stm-k400-8f",
    "clip-joint-b16-k400-8f",
    "vifi-b16-k400-8f",
    "xclip-b16-hmdb-2shot",
    "scratch-xclip-b32-k400-8f",
    "maxi-b16-k400",
    "reading-mlp-tokens-k400-8f",
]


def test_one_configuration_of_every_kind(tmp_path: Path) -> None:
    assert not {k: v for k, v in jobs.run(smoke_runs, str(tmp_path), KINDS).items() if v}


@pytest.mark.slow
def test_every_configuration(tmp_path: Path) -> None:
    from alt.train.catalogue import names

    answer = jobs.finish(jobs.start(smoke_runs, str(tmp_path), names()), timeout=900)
    assert len(answer) == len(names())
    assert not {k: v for k, v in answer.items() if v}
