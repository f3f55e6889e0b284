"""An image of the kept tokens: kept patches as they are, the rest dimmed, one panel a stage."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from foveate.engine.layout import lay_out
from foveate.errors import FoveateError
from foveate.families import FAMILIES, Family, find_runs
from foveate.measure.tables import where


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


SMALLEST, LARGEST = 336, 640  # pixels of a panel's longer side
GAP, HEAD = 14, 26
BACKGROUND, TEXT, FAINT = (17, 20, 24), (236, 239, 243), (150, 158, 168)
EDGE, EDGE_WIDTH = (255, 196, 61), 2
DIM = 0.2  # brightness that is left of a dropped patch


@dataclass(frozen=True)
class Panel:
    """One image with the cells of its grid that are kept; without a mask the image as it is."""

    image: Image.Image
    title: str
    mask: torch.Tensor | None = None


def draw_overlay(
    images: Sequence[Image.Image] | Image.Image,
    stages: Sequence[Any],
    grids: Sequence[ImageGrid] | ImageGrid,
    path: str | Path,
    sample: int = 0,
) -> Path:
    """Write a PNG of one prompt's kept tokens: a row for each image, a panel for each stage.

    Parameters
    ----------
    images
        The images of the prompt, as the model saw them (resized or cropped alike).
    stages
        Stages of a report: each has `layer` and `kept`.
    grids
        Where the visual tokens of each image lie, see `foveate.measure.overlay.image_grids`.
    path
        File to write.
    sample
        Row of the batch that the stages speak of.

    Returns
    -------
    Path
        The file.
    """
    images = [images] if isinstance(images, Image.Image) else list(images)
    grids = [grids] if isinstance(grids, ImageGrid) else list(grids)
    rows = [overlay_row(image, stages, grid, sample) for image, grid in zip(images, grids, strict=True)]
    return draw_panels(rows, path)


def overlay_row(image: Image.Image, stages: Sequence[Any], grid: ImageGrid, sample: int = 0) -> list[Panel]:
    """Return the panels of one image: as it is, then one for each stage."""
    cells = grid.height * grid.width
    panels = [Panel(image, f"dense: {cells} tokens")]
    for stage in stages:
        mask = grid.mask(stage.kept[sample])
        kept = int(mask.sum())
        panels.append(Panel(image, f"{where(stage.layer)}: {kept} of {cells} ({100 * kept / cells:.0f} %)", mask))
    return panels


def draw_panels(
    rows: Sequence[Sequence[Panel]], path: str | Path, captions: Sequence[str] | None = None, columns: int = 1
) -> Path:
    """Write rows of panels as one PNG.

    Parameters
    ----------
    rows
        A row stands for an image.
    path
        File to write.
    captions
        One line over each row.
    columns
        How many rows stand beside each other.

    Returns
    -------
    Path
        The file.
    """
    blocks = [_block(row, captions[at] if captions else None) for at, row in enumerate(rows)]
    columns = min(columns, len(blocks))
    lines = [blocks[at : at + columns] for at in range(0, len(blocks), columns)]
    widths = [max(line[at].width for line in lines if at < len(line)) for at in range(columns)]
    heights = [max(block.height for block in line) for line in lines]
    width = sum(widths) + GAP * (2 * columns)
    sheet = Image.new("RGB", (width, sum(heights) + GAP * (len(lines) + 1)), BACKGROUND)
    top = GAP
    for line, height in zip(lines, heights, strict=True):
        left = GAP
        for block, space in zip(line, widths, strict=False):
            sheet.paste(block, (left, top))
            left += space + 2 * GAP
        top += height + GAP
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG", optimize=True)
    return path


def _block(row: Sequence[Panel], caption: str | None) -> Image.Image:
    pictures = [panel_image(panel) for panel in row]
    font = ImageFont.load_default(13)
    widths = [
        max(picture.width, math.ceil(font.getlength(panel.title)))
        for panel, picture in zip(row, pictures, strict=True)
    ]
    over = HEAD if caption else 0
    width = sum(widths) + GAP * (len(widths) - 1)
    block = Image.new("RGB", (width, over + HEAD + max(picture.height for picture in pictures)), BACKGROUND)
    pen = ImageDraw.Draw(block)
    if caption:
        pen.text((0, 2), _fit(caption, width), fill=TEXT, font=ImageFont.load_default(16))
    left = 0
    for panel, picture, space in zip(row, pictures, widths, strict=True):
        pen.text((left, over + 5), panel.title, fill=FAINT, font=font)
        block.paste(picture, (left, over + HEAD))
        left += space + GAP
    return block


def _fit(caption: str, width: int) -> str:
    font = ImageFont.load_default(16)
    if font.getlength(caption) <= width:
        return caption
    while caption and font.getlength(f"{caption}…") > width:
        caption = caption[:-1]
    return f"{caption}…"


def panel_image(panel: Panel) -> Image.Image:
    """Return a panel as it is drawn: its image, brought to a size that can be seen, with the dropped cells dark."""
    image = panel.image.convert("RGB")
    longer = max(image.size)
    scale = min(max(longer, SMALLEST), LARGEST) / longer
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC)
    if panel.mask is None:
        return image
    return _dimmed(image, panel.mask)


def _dimmed(image: Image.Image, mask: torch.Tensor) -> Image.Image:
    """Return the image with the dropped cells grey and dark, and a line where kept meets dropped."""
    cells = mask.numpy()
    height, width = cells.shape
    across = np.arange(image.width) * width // image.width
    down = np.arange(image.height) * height // image.height
    kept = cells[down[:, None], across[None, :]]
    pixels = np.asarray(image, dtype=np.float32)
    faded = 0.7 * pixels.mean(-1, keepdims=True) + 0.3 * pixels
    dark = faded * DIM + np.array(BACKGROUND, dtype=np.float32) * 0.6
    shown = np.where(kept[..., None], pixels, dark)
    shown[_border(kept)] = EDGE
    return Image.fromarray(shown.round().clip(0, 255).astype(np.uint8))


def _border(kept: np.ndarray) -> np.ndarray:
    """Return the kept pixels that lie within `EDGE_WIDTH` of a dropped one."""
    inner = kept
    for _ in range(EDGE_WIDTH):
        around = np.pad(inner, 1, mode="edge")
        inner = inner & around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return kept & ~inner


def seen_image(processor: Any, inputs: Mapping[str, Any], index: int, original: Image.Image) -> Image.Image:
    """Return one image after the processor's resizing and cropping.

    Parameters
    ----------
    processor
        What made `inputs`.
    inputs
        A processed batch.
    index
        Place of the image among all images of the batch.
    original
        What was given. It is returned where the processor only resizes, since its patches then cover all of it.
    """
    pixels, settings = inputs.get("pixel_values"), processor.image_processor
    if not isinstance(pixels, torch.Tensor) or pixels.ndim != 4 or not getattr(settings, "do_center_crop", False):
        return original
    mean, std = (torch.tensor(getattr(settings, name)).view(3, 1, 1) for name in ("image_mean", "image_std"))
    shown = (pixels[index].detach().float().cpu() * std + mean).clamp(0, 1) * 255
    return Image.fromarray(shown.round().permute(1, 2, 0).numpy().astype(np.uint8))
