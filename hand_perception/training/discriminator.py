"""The motion discriminator: is this a hand's motion, or a network's?

VIBE (Kocabas et al., CVPR 2020), as the Deformer uses it (eqs. 7-8).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MotionDiscriminator(nn.Module):
    """GRU over a window, self-attention pooling, one score; 2 x 1024 as published.

    `width` is the hidden size of the GRU and of the pooling's perceptron.
    """

    def __init__(self, width: int = 1024, layers: int = 2, dropout: float = 0.2) -> None:
        super().__init__()
        self.gru = nn.GRU(46, width, layers, batch_first=True)
        self.attention = nn.Sequential(
            nn.Linear(width, width),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(width, 1),
        )
        self.score = nn.Linear(width, 1)

    def forward(self, motion: Tensor, valid: Tensor) -> Tensor:
        """Scores (B,) of motions (B, T, 46) (`losses.motion_sequence`); frames with valid (B, T)
        False are read as zeros and not pooled."""
        states, _ = self.gru(motion.masked_fill(~valid[..., None], 0.0))
        logits = self.attention(states)[..., 0].masked_fill(~valid, -torch.inf)
        pooled = (states * logits.softmax(1)[..., None]).sum(1)
        return self.score(pooled)[:, 0]
