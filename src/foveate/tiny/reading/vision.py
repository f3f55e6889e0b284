"""Stage A: the tower learns what each patch shows, in the language model's own words.

As in `vision_stage` (which says why): labels are read out as dot products with word embeddings, the last dimensions
of a token hold a code of its patch's fine texture, so that background tokens do not collapse to one vector.
"""

from __future__ import annotations

import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from foveate.tiny.reading.model import GLYPHS, GRID, PLACES, WORD_ID, build
from foveate.tiny.reading.pool import LABELS, ReadingPool
from foveate.tiny.training.optimisers import FAST, optimisers, set_rate
from foveate.tiny.training.pool import IGNORE
from foveate.tiny.training.run import Run
from foveate.tiny.training.vision_stage import (
    _FINE,
    COEFFICIENTS,
    TEXTURE,
    TEXTURE_SCALE,
    patches,
    presence,
    principal_patches,
    see,
    start_tower,
    to_pixels,
)
from foveate.tiny.vocabulary import COLOURS, KINDS, SIZES

# The words for the labels of a patch; "more" has no words.
_LABEL_WORDS = (KINDS, tuple(COLOURS), SIZES, GLYPHS, PLACES)
LABEL_IDS = tuple(torch.tensor([WORD_ID[word] for word in group]) for group in _LABEL_WORDS)
_WEIGHTS = {"kind": 1.0, "colour": 1.0, "size": 1.0, "glyph": 2.0, "place": 1.0, "more": 0.5}


class ReadingPatchHeads(nn.Module):
    """What stage A asks of the visual tokens."""

    def __init__(
        self, width: int, pooled: int, mean: torch.Tensor, axes: torch.Tensor, variance: torch.Tensor
    ) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.randn(6, width) * 0.1)
        self.more = nn.Parameter(torch.randn(2, width) * 0.1)
        self.centre = nn.Linear(width, 2)
        self.row, self.column = nn.Linear(width, GRID), nn.Linear(width, GRID)
        self.pixels = nn.Linear(width, COEFFICIENTS)
        self.present = nn.Linear(pooled, len(KINDS) * len(COLOURS))
        self.register_buffer("mean", mean)
        self.register_buffer("axes", axes[:, :COEFFICIENTS] / torch.sqrt(variance[:COEFFICIENTS]))
        fine = axes[:, _FINE] / torch.sqrt(variance[_FINE])
        self.register_buffer("fine", fine)
        self.register_buffer("mix", torch.linalg.qr(torch.randn(fine.shape[1], fine.shape[1]))[0][:, :TEXTURE])

    def forward(
        self,
        tokens: torch.Tensor,
        pooled: torch.Tensor,
        words: torch.Tensor,
        pixels: torch.Tensor,
        labels: torch.Tensor,
        present: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Total loss, and what to log.

        Parameters
        ----------
        tokens, pooled
            From `see`.
        words
            The word embeddings, (vocabulary, D).
        pixels
            The images, (B, 3, 256, 256).
        labels
            long (B, 7, 256), see `patch_labels`.
        present
            See `presence`.
        """
        flat, logs = tokens.flatten(0, 1), {}
        loss = flat.new_zeros((), dtype=torch.float32)
        for i, name in enumerate(LABELS[:-1]):
            named = self.more if name == "more" else words[LABEL_IDS[i].to(words.device)]
            logits = (flat @ torch.cat([self.nothing[i : i + 1], named]).to(flat.dtype).T).float()
            truth = labels[:, i].flatten()
            weight = torch.ones(logits.shape[1], device=logits.device)
            weight[0] = 0.2
            loss = loss + _WEIGHTS[name] * F.cross_entropy(logits, truth, weight=weight, ignore_index=IGNORE)
            with torch.no_grad():
                shown = truth > 0
                logs[name] = (logits.argmax(1) == truth)[shown].float().mean()
        weight = torch.tensor([0.2, 1.0], device=flat.device)
        loss = loss + 0.5 * F.cross_entropy(self.centre(flat).float(), labels[:, -1].flatten(), weight=weight)
        place = torch.arange(GRID, device=flat.device)
        rows, columns = place.repeat_interleave(GRID), place.repeat(GRID)
        for head, truth in ((self.row, rows), (self.column, columns)):
            loss = loss + 0.3 * F.cross_entropy(head(flat).float(), truth.repeat(len(tokens)))
        with torch.no_grad():
            flat_patches = patches(pixels) - self.mean
            coarse = (flat_patches @ self.axes).clamp(-3, 3)
            fine = flat_patches @ self.fine
            # Contrast is divided out: a faint grain separates places as well as a bold pattern does.
            code = fine / (fine.norm(dim=-1, keepdim=True) + 0.3) @ self.mix * fine.shape[-1] ** 0.5
        logs["pixels"] = F.mse_loss(self.pixels(tokens).float(), coarse)
        logs["texture"] = F.mse_loss(tokens[..., -TEXTURE:].float() / TEXTURE_SCALE, code)
        cls = F.binary_cross_entropy_with_logits(self.present(pooled).float(), present)
        logs["present"] = cls.detach()
        return loss + logs["pixels"] + 2.0 * logs["texture"] + 2.0 * cls, logs


def batch_of(pool: ReadingPool, chosen: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, patch labels and presence of some scenes."""
    present = presence([pool.objects[i] for i in chosen])
    return (
        to_pixels(pool.images[chosen]),
        torch.from_numpy(pool.labels[chosen]).long(),
        torch.from_numpy(present),
    )


@torch.no_grad()
def check_vision(model: nn.Module, heads: ReadingPatchHeads, pool: ReadingPool, scenes: int = 128) -> dict[str, float]:
    """The figures of stage A on held-out scenes."""
    totals: dict[str, list[float]] = {}
    words = model.model.language_model.embed_tokens.weight
    for first in range(0, min(len(pool), scenes), 32):
        pixels, labels, present = batch_of(pool, np.arange(first, min(first + 32, len(pool))))
        with torch.autocast("cpu", torch.bfloat16, enabled=FAST is torch.bfloat16):
            _, logs = heads(*see(model, pixels), words, pixels, labels, present)
        for name, value in logs.items():
            totals.setdefault(name, []).append(float(value))
    return {f"held_out_{name}": float(np.nanmean(values)) for name, values in totals.items()}


def train_vision(run: Run, pool: ReadingPool, held_out: ReadingPool) -> nn.Module:
    """Stage A; continues from the last checkpoint of the run folder. Gives the model, its language part untouched."""
    recipe = run.recipe
    torch.manual_seed(recipe.seed)
    basis = principal_patches(np.asarray(pool.images[: min(400, len(pool))]))
    model = build(recipe)
    start_tower(model, *basis[1:], grid=GRID)
    heads = ReadingPatchHeads(recipe.hidden, recipe.vision_hidden, *basis)
    tower = [
        *model.model.vision_tower.named_parameters(),
        *model.model.multi_modal_projector.named_parameters("projector"),
    ]
    opts = optimisers([*tower, *heads.named_parameters()], recipe.muon_vision, recipe.adam_vision)
    step = run.restore("vision", [model, heads], opts)
    words = model.model.language_model.embed_tokens.weight.detach()
    means: dict[str, float] = {}
    clock = time.time()
    while step < recipe.steps_vision:
        set_rate(opts, step, recipe.steps_vision, recipe.decay_vision)
        chosen = np.random.default_rng([5, recipe.seed, step]).choice(
            len(pool), min(recipe.batch_vision, len(pool)), replace=False
        )
        pixels, labels, present = batch_of(pool, np.sort(chosen))
        with torch.autocast("cpu", torch.bfloat16, enabled=FAST is torch.bfloat16):
            loss, logs = heads(*see(model, pixels), words, pixels, labels, present)
        loss.backward()
        for opt in opts:
            opt.step()
            opt.zero_grad()
        step += 1
        for name, value in (*logs.items(), ("loss", loss)):
            value = float(value.detach())
            means[name] = means.get(name, value) if value != value else 0.95 * means.get(name, value) + 0.05 * value
        if step % 25 == 0 or step == recipe.steps_vision:
            extra = check_vision(model, heads, held_out) if step % 200 == 0 or step == recipe.steps_vision else {}
            run.log(stage="vision", step=step, clock=round(time.time() - clock, 1), **means, **extra)
        if run.due() or step == recipe.steps_vision:
            run.save("vision", step, [model, heads], opts)
    return model
