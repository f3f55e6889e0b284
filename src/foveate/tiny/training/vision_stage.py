"""Stage A: the tower learns what each patch shows, in the language model's own words.

Patch labels are read out as dot products with the word embeddings, so that a visual token comes to lie near the words
for what it shows. Labels alone would give every background token the same vector, and picking diverse tokens would
find all objects. So the last dimensions of a token hold a code of its patch's fine texture, as varied in the
background as on the objects, and a reconstruction head keeps the coarse colours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from foveate.tiny.drawing import GLYPHS, PATCH
from foveate.tiny.model import build
from foveate.tiny.scenes import Thing
from foveate.tiny.training.optimisers import FAST, optimisers, set_rate
from foveate.tiny.training.pool import IGNORE, LABELS, PLACES, Pool
from foveate.tiny.training.run import Run
from foveate.tiny.vocabulary import COLOURS, KINDS, SIZES, WORD_ID

Progress = Callable[[str, int, int, str], None]
"""Called with the stage, the step, the steps and a short text."""

COEFFICIENTS = 16
# Token dimensions that hold the texture code; word embeddings start without them.
TEXTURE = 32
TEXTURE_SCALE = 8.0
_FINE = slice(24, 128)  # principal components that count as fine texture
# The words for the labels of a patch; "more" has no words.
_LABEL_WORDS = (KINDS, tuple(COLOURS), SIZES, GLYPHS, PLACES)
LABEL_IDS = tuple(torch.tensor([WORD_ID[word] for word in group]) for group in _LABEL_WORDS)
_WEIGHTS = {"kind": 1.0, "colour": 1.0, "size": 1.0, "glyph": 2.0, "place": 1.0, "more": 0.5}


def presence(objects: list[list[Thing]]) -> np.ndarray:
    """Which (kind, colour) pairs each scene shows, float32 (scenes, 64)."""
    colours = list(COLOURS)
    out = np.zeros((len(objects), len(KINDS) * len(colours)), dtype=np.float32)
    for row, things in zip(out, objects, strict=True):
        for thing in things:
            row[KINDS.index(thing.kind) * len(colours) + colours.index(thing.colour)] = 1
    return out


def patches(images: torch.Tensor) -> torch.Tensor:
    """Cut images (B, 3, H, W) into flat patches (B, HW / 256, 768) as the tower's convolution sees them."""
    return F.unfold(images, PATCH, stride=PATCH).transpose(1, 2)


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """Images (B, H, W, 3) uint8 as the processor gives them: float32 (B, 3, H, W) in -1..1."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def body(model: nn.Module) -> nn.Module:
    """The CLIP transformer of the model; some transformers versions wrap it once more."""
    tower = model.model.vision_tower
    return tower.vision_model if hasattr(tower, "vision_model") else tower


@torch.no_grad()
def principal_patches(images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean (768,), axes (768, 768), columns by falling variance, and variances (768,) of the images' patches."""
    flat = torch.cat([patches(to_pixels(images[i : i + 50])).flatten(0, 1) for i in range(0, len(images), 50)])
    mean = flat.mean(0)
    variance, axes = torch.linalg.eigh(torch.cov((flat - mean).T))
    return mean, axes.flip(1), variance.flip(0)


@torch.no_grad()
def start_tower(model: nn.Module, axes: torch.Tensor, variance: torch.Tensor) -> None:
    """Begin with PCA-whitened patches and 2-D sine positions: far quicker than from random ones."""
    embeddings = body(model).embeddings
    weight = embeddings.patch_embedding.weight
    width = weight.shape[0]
    scale = 0.5 / torch.sqrt(variance[:width] + 0.02 * variance[20])
    weight.copy_((axes[:, :width] * scale).T.reshape(weight.shape))
    frequency = 30.0 ** -(torch.arange(width // 4) / (width // 4))
    grid = math.isqrt(len(embeddings.position_embedding.weight) - 1)
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    waves = [f(v.reshape(-1, 1) * frequency) for v in (y, x) for f in (torch.sin, torch.cos)]
    embeddings.position_embedding.weight[1:] = 0.5 * torch.cat(waves, 1)
    model.model.language_model.embed_tokens.weight[:, -TEXTURE:] = 0


def see(model: nn.Module, pixels: torch.Tensor, dtype: torch.dtype = FAST) -> tuple[torch.Tensor, torch.Tensor]:
    """Projected visual tokens (B, N, D) and the tower's pooled CLS (B, E) of images (B, 3, H, W).

    The same function as the model's own, written lean: it computes in `dtype` whatever the weights are stored in.
    """

    def linear(x: torch.Tensor, *layers: nn.Linear) -> torch.Tensor:
        weight = torch.cat([layer.weight.to(dtype) for layer in layers])
        return F.linear(x, weight, torch.cat([layer.bias.to(dtype) for layer in layers]))

    def norm(x: torch.Tensor, layer: nn.LayerNorm) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], layer.weight.to(dtype), layer.bias.to(dtype), layer.eps)

    tower = body(model)
    x = patches(pixels.to(dtype)) @ tower.embeddings.patch_embedding.weight.flatten(1).T.to(dtype)
    first = tower.embeddings.class_embedding.to(dtype).expand(len(x), 1, -1)
    x = torch.cat([first, x], 1) + tower.embeddings.position_embedding.weight.to(dtype)
    x = norm(x, tower.pre_layrnorm)
    size, length, width = x.shape
    heads = tower.config.num_attention_heads
    for layer in tower.encoder.layers:
        attention = layer.self_attn
        y = linear(norm(x, layer.layer_norm1), attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = y.view(size, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        # Plain products: on a CPU the fused kernel's backward takes several times as long.
        share = ((q * (width // heads) ** -0.5) @ k.mT).softmax(-1).to(v.dtype)
        y = (share @ v).transpose(1, 2).reshape(size, length, width)
        x = x + linear(y, attention.out_proj)
        y = linear(norm(x, layer.layer_norm2), layer.mlp.fc1)
        x = x + linear(y * torch.sigmoid(1.702 * y), layer.mlp.fc2)
    projector = model.model.multi_modal_projector
    tokens = linear(F.gelu(linear(x[:, 1:], projector.linear_1)), projector.linear_2)
    return tokens, norm(x[:, 0], tower.post_layernorm)


@torch.no_grad()
def amplify_texture(model: nn.Module, gain: float) -> None:
    """Scale the texture code inside the projector, and have every decoder layer expect it that large.

    How large the code is beside the labels decides how far apart two background tokens lie.
    """
    last = model.model.multi_modal_projector.linear_2
    last.weight[-TEXTURE:] *= gain
    last.bias[-TEXTURE:] *= gain
    for layer in model.model.language_model.layers:
        layer.input_layernorm.weight[-TEXTURE:] /= gain
        layer.post_attention_layernorm.weight[-TEXTURE:] /= gain


class PatchHeads(nn.Module):
    """What stage A asks of the visual tokens."""

    def __init__(
        self, width: int, pooled: int, grid: int, mean: torch.Tensor, axes: torch.Tensor, variance: torch.Tensor
    ) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.randn(6, width) * 0.1)
        self.more = nn.Parameter(torch.randn(2, width) * 0.1)
        self.centre = nn.Linear(width, 2)
        self.row, self.column = nn.Linear(width, grid), nn.Linear(width, grid)
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
            The images, (B, 3, side, side).
        labels
            long (B, 7, grid²), see `patch_labels`.
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
        grid = self.row.out_features
        place = torch.arange(grid, device=flat.device)
        rows, columns = place.repeat_interleave(grid), place.repeat(grid)
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


def batch_of(pool: Pool, chosen: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, patch labels and presence of some scenes."""
    present = presence([pool.objects[i] for i in chosen])
    return (
        to_pixels(pool.images[chosen]),
        torch.from_numpy(pool.labels[chosen]).long(),
        torch.from_numpy(present),
    )


@torch.no_grad()
def check_vision(model: nn.Module, heads: PatchHeads, pool: Pool, scenes: int = 128) -> dict[str, float]:
    """The figures of stage A on held-out scenes."""
    totals: dict[str, list[float]] = {}
    place = next(model.parameters()).device
    words = model.model.language_model.embed_tokens.weight
    for first in range(0, min(len(pool), scenes), 32):
        pixels, labels, present = (v.to(place) for v in batch_of(pool, np.arange(first, min(first + 32, len(pool)))))
        with torch.autocast(place.type, torch.bfloat16, enabled=FAST is torch.bfloat16):
            _, logs = heads(*see(model, pixels), words, pixels, labels, present)
        for name, value in logs.items():
            totals.setdefault(name, []).append(float(value))
    return {f"held_out_{name}": float(np.nanmean(values)) for name, values in totals.items()}


def train_vision(run: Run, pool: Pool, held_out: Pool, progress: Progress | None = None) -> nn.Module:
    """Stage A; continues from the last checkpoint of the run folder. Gives the model, its language part untouched."""
    recipe = run.recipe
    torch.manual_seed(recipe.seed)
    basis = principal_patches(np.asarray(pool.images[: min(400, len(pool))]))
    model = build(recipe.shape, recipe.side)
    start_tower(model, *basis[1:])
    heads = PatchHeads(recipe.shape.hidden, recipe.shape.vision_hidden, recipe.grid, *basis)
    model, heads = model.to(run.device), heads.to(run.device)
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
        pixels, labels, present = (v.to(run.device) for v in batch_of(pool, np.sort(chosen)))
        with torch.autocast(torch.device(run.device).type, torch.bfloat16, enabled=FAST is torch.bfloat16):
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
        if progress:
            progress("vision", step, recipe.steps_vision, f"loss {means['loss']:.2f}")
        if run.due() or step == recipe.steps_vision:
            run.save("vision", step, [model, heads], opts)
    return model
