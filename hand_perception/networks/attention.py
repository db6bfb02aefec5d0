"""Attention layers and sine positions (Vaswani et al. 2017; 2D and placement as in DETR, 2020)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention; positions are added to queries and keys, never to values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """(B, M, D) out of queries (B, M, D), keys and values (B, N, D).

        Keys with valid (B, N) False are never looked at; every batch entry needs a valid one.
        """

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        mask = None if valid is None else valid[:, None, None, :]
        attended = F.scaled_dot_product_attention(
            split(self.query(query)), split(self.key(key)), split(self.value(value)), mask
        )
        return self.out(attended.transpose(1, 2).flatten(-2))


class FeedForward(nn.Sequential):
    """Two linear layers with a ReLU."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each normalised first and added to its input."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_feed = nn.LayerNorm(width)
        self.feed = FeedForward(width, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, position: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, N, D) tokens after one layer; position broadcasts to the tokens."""
        normed = self.norm_attention(tokens)
        placed = normed + position
        tokens = tokens + self.dropout(self.attention(placed, placed, normed, valid))
        return tokens + self.dropout(self.feed(self.norm_feed(tokens)))


class DecoderLayer(nn.Module):
    """Cross-attention of queries into a memory, and feed-forward.

    With a single query self-attention among the queries would be a linear map, so there is none.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_feed = nn.LayerNorm(width)
        self.feed = FeedForward(width, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, query: Tensor, memory: Tensor, position: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """(B, M, D) queries after one look at memory (B, N, D) placed at position."""
        normed = self.norm_attention(query)
        seen = self.attention(normed, memory + position, memory, valid)
        query = query + self.dropout(seen)
        return query + self.dropout(self.feed(self.norm_feed(query)))


def sine_encoding(values: Tensor, width: int, temperature: float = 10_000.0) -> Tensor:
    """Sines and cosines (..., width) of any real values (...), periods 2 pi to 2 pi temperature."""
    half = width // 2
    exponent = torch.arange(half, dtype=values.dtype, device=values.device) / half
    phase = values[..., None] * torch.exp(-math.log(temperature) * exponent)
    return torch.cat([phase.sin(), phase.cos()], -1)


def grid_encoding(side: int, width: int) -> Tensor:
    """Positions (side * side, width) of a square grid's cells, row by row; y first, then x."""
    place = (torch.arange(side, dtype=torch.float32) + 1) * (2 * math.pi / side)
    axis = sine_encoding(place, width // 2)
    rows = axis[:, None].expand(side, side, -1)
    columns = axis[None, :].expand(side, side, -1)
    return torch.cat([rows, columns], -1).reshape(side * side, width)


def soft_argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Expected place of maps (B, J, H, W): (B, J, 2) x, y in [0, 1] of the map, and the
    probabilities (B, J, H, W). The centre of cell i of n lies at (i + 0.5) / n."""
    height, width = logits.shape[-2:]
    probability = logits.flatten(-2).softmax(-1).unflatten(-1, (height, width))
    x = (torch.arange(width, dtype=logits.dtype, device=logits.device) + 0.5) / width
    y = (torch.arange(height, dtype=logits.dtype, device=logits.device) + 0.5) / height
    expected = torch.stack([probability.sum(-2) @ x, probability.sum(-1) @ y], -1)
    return expected, probability
