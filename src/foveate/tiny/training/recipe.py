"""All that decides what comes out of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from foveate.tiny.drawing import PATCH
from foveate.tiny.model import Shape
from foveate.tiny.scenes import SIZE


@dataclass(frozen=True)
class Recipe:
    """The defaults are those of the shipped weights."""

    seed: int = 0
    scenes: int = 24000
    held_out_scenes: int = 800
    shape: Shape = field(default_factory=Shape)
    side: int = SIZE
    """Of the pictures, in pixels."""
    # stage A: the vision part, on what each patch shows
    steps_vision: int = 2000
    batch_vision: int = 24
    muon_vision: float = 0.02
    adam_vision: float = 0.003
    decay_vision: float = 0.6
    texture_gain: float = 2.0
    """How much the texture code is scaled up beside the labels. On the tower half trained: at 1, 2, 3 and 6 max-min
    diversity finds 53, 48, 44 and 41 % of the objects' tokens among 22 % of all; a large code hides the labels."""
    # stage B: the language model, on questions
    steps_language: int = 15500
    batch_language: int = 8
    muon_language: float = 0.008
    adam_language: float = 0.002
    decay_from: int = 5000
    signs_weight: float = 2.0
    """How much oftener scenes with long numbers, words or arrows come."""
    top_layers: int = 5
    """The layers that learn first; the others begin as the identity."""
    grow_at: int = 8278
    """The step from which on all layers are trained."""
    phases: tuple[tuple[int, int, int], ...] = ((758, 4, 32), (1895, 6, 64), (3537, 9, 128), (0, 99, 256))
    """Up to which step, objects at most, visual tokens shown: only the last phase, most of the run, shows all."""
    small: tuple[tuple[int, int, float], ...] = (
        (12, 2500, 1.0),
        (20, 2500, 1.0),
        (32, 2000, 1.0),
        (48, 1500, 1.0),
        (72, 1200, 0.8),
        (112, 900, 0.6),
        (160, 600, 0.5),
    )
    """Small pictures: visual tokens of one, how many are drawn, and how often they come."""
    small_from: int = 9924
    small_every: int = 2
    """From which step on they come, and that they come in every second one."""
    small_weight: float = 0.5
    check_every: int = 250
    check_scenes: int = 192

    @property
    def grid(self) -> int:
        """Patches along a side of a picture."""
        return self.side // PATCH

    def lasting(self, steps: int) -> Recipe:
        """The same course of stage B in another number of steps."""
        part = steps / self.steps_language
        return replace(
            self,
            steps_language=steps,
            decay_from=round(part * self.decay_from),
            grow_at=round(part * self.grow_at),
            small_from=round(part * self.small_from),
            phases=tuple((round(part * until), most, visual) for until, most, visual in self.phases),
        )


RECIPES = {
    "shipped": Recipe(),
    "large": Recipe(
        side=384,
        shape=Shape(layers=16),
        top_layers=7,
        phases=((758, 4, 72), (1895, 6, 144), (3537, 9, 288), (0, 99, 576)),
        small=tuple((patches, count, 1.0) for patches, count in ((20, 2500), (48, 2000), (112, 1500), (252, 1000))),
    ),
}
"""Named recipes: that of the shipped weights, and one with 24 x 24 = 576 visual tokens and 16 decoder layers (7.9
million parameters, 15.7 MB in half precision), for a GPU. That one has not been trained; its rates and course
are the shipped one's."""
