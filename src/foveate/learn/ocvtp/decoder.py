"""What OC-VTP's slots are trained with: a decoder that rebuilds features from them, and the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveate.pruners.ocvtp.modules import SlotModules

POWER, CAP, EPS = 0.5, 10.0, 1e-8  # of the loss
FEW = 0.1  # share of the tokens that the decoder is shown in half of the cases


class SlotDecoder(nn.Module):
    """A transformer that is shown some tokens of an image, and looks up the others in the slots.

    Parameters
    ----------
    tokens, width
        T and C of the features.
    size
        W of the slots.
    layers, heads
        Of the transformer.
    """

    def __init__(self, tokens: int, width: int, size: int, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.seen = nn.Sequential(nn.Linear(width, width, bias=False), nn.LayerNorm(width))
        self.slots = nn.Sequential(nn.Linear(size, width, bias=False), nn.LayerNorm(width))
        self.hidden = nn.Parameter(torch.randn(width) * width**-0.5)
        self.position = nn.Parameter(torch.empty(tokens, width))
        nn.init.trunc_normal_(self.position)
        self.norm = nn.LayerNorm(width, bias=False)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, heads, 4 * width, dropout=0, activation="gelu", batch_first=True, norm_first=True, bias=False
            )
            for _ in range(layers)
        )
        self.layers[0].norm1 = nn.Identity()  # the norm above comes before what is added to, too

    def forward(self, features: Tensor, shown: Tensor, slots: Tensor) -> Tensor:
        """Rebuild the features (B, T, C) from those `shown` (B, T) bool and from slots (B, K, W)."""
        x = self.norm(torch.where(shown[..., None], self.seen(features), self.hidden) + self.position)
        memory = self.slots(slots)
        for layer in self.layers:
            x = layer(x, memory)
        return x


def some_shown(batch: int, tokens: int) -> Tensor:
    """Which tokens the decoder sees, (B, T) bool: a tenth of them, or in half of the cases any number."""
    many = torch.where(torch.rand(batch) < 0.5, torch.randint(0, tokens, (batch,)), int(FEW * tokens))
    return torch.rand(batch, tokens).argsort(-1).argsort(-1) < many[:, None]


def area_weighted_error(rebuilt: Tensor, features: Tensor, share: Tensor) -> Tensor:
    """Mean squared error in which the tokens of small slots count more.

    A slot's area is the share of the tokens that attend to it most; its weight is area^-0.5, over the slots' mean and
    at most 10. A token's weight is the mean of its slots' by its attention; over an image they sum to 1.

    Parameters
    ----------
    rebuilt, features
        (B, T, C).
    share
        (B, K, T) attention, over the slots in sum 1; no gradient goes through it.
    """
    share = share.detach()
    owner = torch.zeros_like(share).scatter(1, share.argmax(1, keepdim=True), 1)
    weight = owner.mean(-1).clamp(min=EPS) ** -POWER
    weight = (weight / weight.mean(-1, keepdim=True)).clamp(max=CAP)
    each = (share * weight[..., None]).sum(1)
    return (each / each.sum(-1, keepdim=True) * (rebuilt - features).square().mean(-1)).sum(-1).mean()


def reconstruction_loss(modules: SlotModules, decoder: SlotDecoder, features: Tensor, slots: int) -> Tensor:
    """The loss on features (B, T, C) of some images with so many slots, whose starting points are drawn."""
    batch, tokens, _ = features.shape
    seen: list[Tensor] = []
    draw = torch.randn(batch, slots, modules.config.size).to(features)
    there = torch.ones(batch, tokens, dtype=torch.bool, device=features.device)
    found = modules.attention(modules.encoder(features), there, modules.start(draw), seen.append)
    rebuilt = decoder(features, some_shown(batch, tokens).to(features.device), found)
    return area_weighted_error(rebuilt, features, torch.cat(seen, -1))
