"""Where a visual token lies in its image: the grid of an image's tokens and their positions in the prompt."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from foveate.engine.layout import lay_out
from foveate.errors import FoveateError
from foveate.families import FAMILIES, Family, find_runs


class NoGridError(FoveateError):
    """The visual tokens of an image do not lie on one grid, or foveate does not know on which."""


@dataclass(frozen=True)
class ImageGrid:
    """The visual tokens of one image.

    Parameters
    ----------
    height, width
        Rows and columns of tokens.
    positions
        (height * width,) int. Their positions in the dense prompt, left padding counted, row by row.
    """

    height: int
    width: int
    positions: torch.Tensor

    def mask(self, kept: torch.Tensor) -> torch.Tensor:
        """Return which cells are kept, `(height, width) bool`, from kept positions in the dense prompt."""
        return torch.isin(self.positions.cpu(), kept.cpu()).view(self.height, self.width)


def visual_positions(config: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Return the positions of the image tokens in one prompt, `(length,)` ids in, ascending positions out."""
    token = getattr(config, "image_token_id", None)
    if token is None:
        raise NoGridError(f"the configuration of {config.model_type} names no image token")
    return (input_ids == token).nonzero().flatten()


def image_grids(config: Any, inputs: Mapping[str, torch.Tensor], sample: int = 0) -> list[ImageGrid]:
    """Return the grid of each image in a sample of a processed batch.

    Parameters
    ----------
    config
        The model's configuration.
    inputs
        What the processor returned: `input_ids (B, L)` and, by family, `image_grid_thw` or `pixel_values`.
    sample
        Which row of the batch.

    Raises
    ------
    NoGridError
        The tokens of an image do not lie on one grid; the message says why.
    """
    family = FAMILIES.get(config.model_type, Family(config.model_type, config.model_type, ""))
    ids = inputs["input_ids"].cpu()
    visual = torch.isin(ids, torch.tensor(family.visual_ids(config)))
    runs = find_runs(visual, ids)
    layout = lay_out(visual, runs, family.image_grids(config, inputs, runs))
    if not layout.known:
        raise NoGridError(f"{config.model_type} lays an image's tokens out in a way that foveate cannot draw")
    image, number, _, _ = layout.places[:, sample]
    found = []
    for index in range(int(image.max()) + 1):
        numbers = number[(image == index) & (number >= 0)].unique().tolist()
        if len(numbers) != 1:
            raise NoGridError(
                f"{config.model_type} sees an image as {len(numbers)} grids of tokens, which foveate cannot draw yet"
            )
        grid = layout.grids[sample][numbers[0]]
        found.append(ImageGrid(grid.height, grid.width, (number == numbers[0]).nonzero().flatten()))
    return found
