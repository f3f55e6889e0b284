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
    steps_language: int = 9500
    batch_language: int = 8
    muon_language: float = 0.008
    adam_language: float = 0.002
    decay_from: int = 6800
    signs_weight: float = 2.0
    """How much oftener scenes with long numbers, words or arrows come."""
    top_layers: int = 5
    """The layers that learn first; the others begin as the identity."""
    grow_at: int = 5500
    """The step from which on all layers are trained."""
    phases: tuple[tuple[int, int, int], ...] = ((600, 4, 32), (1500, 6, 64), (2800, 9, 128), (0, 99, 256))
    """Up to which step, objects at most, visual tokens shown: only the last phase, most of the run, shows all."""
    led_until: int = 2000
    """The step by which the loss that leads attention to the evidence has faded; 0: there is none."""
    led_weight: float = 0.2
    led_layers: tuple[int, ...] = (9, 10)
    small: tuple[tuple[int, int, float], ...] = ()
    """Small pictures: visual tokens of one, how many are drawn, and how often they come; by default none."""
    small_from: int = 0
    small_every: int = 2
    """From which step on they come, and that they come in every second one."""
    small_weight: float = 0.5
    shares: tuple[tuple[str, float], ...] = ()
    """How often tasks are asked in place of the packing's own shares."""
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
            led_until=round(part * self.led_until),
            small_from=round(part * self.small_from),
            phases=tuple((round(part * until), most, visual) for until, most, visual in self.phases),
        )


RECIPES = {
    "shipped": Recipe(),
    "unled": replace(Recipe(), led_until=0),
    "sizes": Recipe(
        steps_language=15500,
        decay_from=5000,
        grow_at=8278,
        phases=((758, 4, 32), (1895, 6, 64), (3537, 9, 128), (0, 99, 256)),
        led_until=0,
        small=(
            (12, 2500, 1),
            (20, 2500, 1),
            (32, 2000, 1),
            (48, 1500, 1),
            (72, 1200, 0.8),
            (112, 900, 0.6),
            (160, 600, 0.5),
        ),
        small_from=9924,
        shares=(("each", 1.8), ("row", 2.5), ("colours", 2.0), ("shapes", 2.0)),
    ),
    "large": Recipe(
        side=384,
        shape=Shape(layers=16),
        top_layers=7,
        led_layers=(12, 13),
        phases=((600, 4, 72), (1500, 6, 144), (2800, 9, 288), (0, 99, 576)),
    ),
}
"""Named recipes: that of the shipped weights; its control, without a loss that leads attention; one without that loss
and with pictures of all sizes; and one with 24 x 24 = 576 visual tokens and 16 decoder layers (7.9 million parameters,
15.7 MB in half precision), for a GPU. That one has not been trained; its rates and steps are the shipped one's."""
