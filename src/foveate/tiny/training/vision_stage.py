"""Stage A: the tower learns what each patch shows, in the language model's own words.

Patch labels are read out as dot products with the word embeddings, so that a visual token comes to lie near the words
for what it shows. Labels alone would give every background token the same vector, and picking diverse tokens would
find all objects. So the last dimensions of a token hold a code of its patch's fine texture, as varied in the
background as on the objects, and a reconstruction head keeps the coarse colours.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from foveate.tiny.scenes import Thing
from foveate.tiny.training.optimisers import FAST
from foveate.tiny.training.pool import GRID, IGNORE, Pool
from foveate.tiny.vocabulary import COLOURS, DIGITS, KINDS, NEXT_DIGITS, SIZES, WORD_ID

COEFFICIENTS = 16
PATCH = 16  # side in pixels
# Token dimensions that hold the texture code; word embeddings start without them.
TEXTURE = 32
TEXTURE_SCALE = 8.0
_FINE = slice(24, 128)  # principal components that count as fine texture
_LABEL_WORDS = (KINDS, tuple(COLOURS), SIZES, DIGITS, NEXT_DIGITS)
LABEL_IDS = tuple(torch.tensor([WORD_ID[word] for word in group]) for group in _LABEL_WORDS)


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


def to_pixels(images: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """Images (B, H, W, 3) uint8 as the processor gives them: float32 (B, 3, H, W) in -1..1."""
    return torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


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
def start_tower(model: nn.Module, axes: torch.Tensor, variance: torch.Tensor, grid: int = GRID) -> None:
    """Begin with PCA-whitened patches and 2-D sine positions: far quicker than from random ones."""
    embeddings = body(model).embeddings
    weight = embeddings.patch_embedding.weight
    width = weight.shape[0]
    scale = 0.5 / torch.sqrt(variance[:width] + 0.02 * variance[20])
    weight.copy_((axes[:, :width] * scale).T.reshape(weight.shape))
    frequency = 30.0 ** -(torch.arange(width // 4) / (width // 4))
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

    def __init__(self, width: int, mean: torch.Tensor, axes: torch.Tensor, variance: torch.Tensor):
        super().__init__()
        self.nothing = nn.Parameter(torch.randn(5, width) * 0.1)
        self.no_next_digit = nn.Parameter(torch.randn(1, width) * 0.1)
        self.centre = nn.Linear(width, 2)
        self.row, self.column = nn.Linear(width, GRID), nn.Linear(width, GRID)
        self.pixels = nn.Linear(width, COEFFICIENTS)
        self.present = nn.Linear(width, len(KINDS) * len(COLOURS))
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
        digit_weight: float = 1.5,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Total loss, and what to log.

        Parameters
        ----------
        tokens, pooled
            From `see`.
        words
            The word embeddings, (vocabulary, D).
        pixels
            The images, (B, 3, 224, 224).
        labels
            long (B, 6, 196), see `patch_labels`.
        present
            See `presence`.
        digit_weight
            Weight of the two digit losses.
        """
        flat, logs = tokens.flatten(0, 1), {}
        loss = flat.new_zeros((), dtype=torch.float32)
        names = ("kind", "colour", "size", "digit", "next_digit")
        for i, name in enumerate(names):
            rows = [self.nothing[i : i + 1], words[LABEL_IDS[i].to(words.device)]]
            if name == "next_digit":
                rows.append(self.no_next_digit)
            logits = (flat @ torch.cat(rows).T).float()
            truth = labels[:, i].flatten()
            weight = torch.ones(logits.shape[1], device=logits.device)
            weight[0] = 0.2
            part = F.cross_entropy(logits, truth, weight=weight, ignore_index=IGNORE)
            loss = loss + part * (digit_weight if "digit" in name else 1.0)
            with torch.no_grad():
                shown = truth > 0
                logs[name] = (logits.argmax(1) == truth)[shown].float().mean()
        weight = torch.tensor([0.2, 1.0], device=flat.device)
        loss = loss + 0.5 * F.cross_entropy(self.centre(flat).float(), labels[:, 5].flatten(), weight=weight)
        place = torch.arange(GRID, device=flat.device)
        rows, columns = place.repeat_interleave(GRID), place.repeat(GRID)
        for head, truth in ((self.row, rows), (self.column, columns)):
            loss = loss + 0.3 * F.cross_entropy(head(flat).float(), truth.repeat(len(tokens)))
        with torch.no_grad():
            flat_patches = patches(pixels) - self.mean
            coarse = (flat_patches @ self.axes).clamp(-3, 3)
            fine = flat_patches @ self.fine
            # Contrast is divided out: a faint grain distinguishes places as well as a bold pattern does.
            code = fine / (fine.norm(dim=-1, keepdim=True) + 0.3) @ self.mix * fine.shape[-1] ** 0.5
        logs["pixels"] = F.mse_loss(self.pixels(tokens).float(), coarse)
        logs["texture"] = F.mse_loss(tokens[..., -TEXTURE:].float() / TEXTURE_SCALE, code)
        cls = F.binary_cross_entropy_with_logits(self.present(pooled).float(), present)
        logs["present"] = cls.detach()
        return loss + logs["pixels"] + 2.0 * logs["texture"] + 2.0 * cls, logs


class VisionBatches:
    """Batches of stage A by step number: they depend on seed and step alone, so that a resumed run continues the same.

    From step `signs_from` on, scenes with many signs come more often, in batches half as large: digits are what is
    learned last.
    """

    def __init__(self, pool: Pool, batch: int, seed: int, signs_from: int, device: torch.device | str = "cpu"):
        self.pool, self.batch, self.seed, self.signs_from, self.device = pool, batch, seed, signs_from, device
        self.present = presence(pool.objects)
        signs = np.array([0.5 + sum(thing.kind == "sign" for thing in objects) for objects in pool.objects])
        self.chance = signs / signs.sum()

    def __call__(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images, patch labels and presence of a step."""
        rng = np.random.default_rng([5, self.seed, step])
        late = step >= self.signs_from
        count = min(len(self.pool), self.batch // 2 if late else self.batch)
        chosen = np.sort(rng.choice(len(self.pool), count, replace=False, p=self.chance if late else None))
        return (
            to_pixels(self.pool.images[chosen], self.device),
            torch.from_numpy(self.pool.labels[chosen]).long().to(self.device),
            torch.from_numpy(self.present[chosen]).to(self.device),
        )
