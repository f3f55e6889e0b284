"""What the vision encoder's blocks put out, kept until the prefill that its tokens go into."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate.engine.frame import Prompt
from foveate.engine.layout import Layout
from foveate.errors import UnsupportedModelError
from foveate.families import Family

Register = Callable[[nn.Module, Callable], None]


class VisionRecorder:
    """Listens to some blocks of the vision encoder.

    Images are encoded inside the forward pass, or by `generate()` before it and before beams repeat the prompt; the
    encoder runs once for all images of a batch, and once more for its videos.

    Parameters
    ----------
    blocks
        Of the vision encoder, from the first.
    layers
        Which of them are wanted, in which order.
    """

    def __init__(self, blocks: Sequence[nn.Module], layers: Sequence[int]) -> None:
        if wrong := [layer for layer in layers if not 0 <= layer < len(blocks)]:
            raise UnsupportedModelError(f"vision layers {wrong} are not in an encoder of {len(blocks)} blocks")
        self.blocks, self.layers = blocks, tuple(layers)
        self.thread = threading.local()

    def register(self, before: Register, after: Register) -> None:
        """Hook the blocks."""
        before(self.blocks[0], self._start)
        for layer in sorted(set(self.layers)):
            after(self.blocks[layer], partial(self._record, layer))

    def _start(self, block: nn.Module, args: tuple, kwargs: dict) -> None:
        self.runs.append({})
        del self.runs[:-2]  # images and videos; what an earlier call left behind is stale

    def _record(self, layer: int, block: nn.Module, args: tuple, output: Any) -> None:
        if self.runs:
            self.runs[-1][layer] = output[0] if isinstance(output, tuple) else output

    @property
    def runs(self) -> list[dict[int, Tensor]]:
        """Of this thread: for each run of the encoder, the output of each wanted block."""
        if not hasattr(self.thread, "runs"):
            self.thread.runs = []
        found: list[dict[int, Tensor]] = self.thread.runs
        return found

    def take(self, prompt: Prompt, family: Family, config: Any, device: torch.device) -> tuple[Tensor, ...]:
        """(B, L, C) features of the visual tokens for each wanted layer, zero elsewhere; what was recorded is gone.

        Raises
        ------
        UnsupportedModelError
            The images were encoded while the pruner was not attached, or their layout is unknown.
        """
        runs, self.thread.runs = self.runs, []
        layout = prompt.layout
        kinds = sorted(set(layout.videos))  # the encoder runs for images first, then for videos
        if len(runs) < len(kinds):
            raise UnsupportedModelError(
                "the vision encoder was not seen at work: encode images and videos while the pruner is attached"
            )
        if not layout.known:
            raise UnsupportedModelError("vision features need to know where the visual tokens lie in their images")
        found = []
        for layer in self.layers:
            each: list[Tensor] = [torch.empty(0)] * len(layout.images)
            for run, kind in zip(runs[len(runs) - len(kinds) :], kinds, strict=True):
                own = [number for number, video in enumerate(layout.videos) if video == kind]
                grids = [layout.images[number] for number in own]
                lengths = [sum(grid.length for grid in image) for image in grids]
                features = family.vision_features(config, run[layer].detach(), grids)
                if len(features) != sum(lengths):
                    raise UnsupportedModelError(
                        f"the vision encoder saw {len(features)} visual tokens, the prompt has {sum(lengths)}"
                    )
                for number, image in zip(own, features.split(lengths), strict=True):
                    each[number] = image.to(device)
            found.append(_in_prompt(torch.cat(each), layout))
        return tuple(found)


def _in_prompt(features: Tensor, layout: Layout) -> Tensor:
    """(B, L, C) from the (T, C) features of the images, once each."""
    visual = layout.visual[:: layout.repeats].to(features.device)
    once = features.new_zeros(*visual.shape, features.shape[-1])
    once[visual] = features
    return once.repeat_interleave(layout.repeats, 0)
