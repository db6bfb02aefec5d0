"""ResNet-50 with a feature pyramid and RoIAlign, in plain torch (no torchvision).

ResNet: He et al., CVPR 2016. FPN: Lin et al., CVPR 2017. RoIAlign: He et al., Mask R-CNN, 2017.
As the Deformer uses them: LeakyReLU in place of ReLU, only P2 (stride 4) is read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hand_perception.types import HandPerceptionError

SLOPE = 0.01
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; four times wider at the end."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = 4 * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, features: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, 4 width, H / stride, W / stride)."""
        inner = F.leaky_relu(self.bn1(self.conv1(features)), SLOPE)
        inner = F.leaky_relu(self.bn2(self.conv2(inner)), SLOPE)
        return F.leaky_relu(self.bn3(self.conv3(inner)) + self.downsample(features), SLOPE)


class ResNetFPN(nn.Module):
    """A bottleneck ResNet and its pyramid; `blocks` (3, 4, 6, 3) and `width` 64 are ResNet-50;
    `channels` are the pyramid's.

    Names of the ResNet's weights are torchvision's, so ImageNet weights load by name.
    """

    def __init__(
        self, blocks: Sequence[int] = (3, 4, 6, 3), width: int = 64, channels: int = 256
    ) -> None:
        super().__init__()
        if len(blocks) != 4 or min(*blocks, width, channels) < 1:
            raise HandPerceptionError(
                f"ResNet of blocks {tuple(blocks)}, width {width}, channels {channels}: four "
                "positive numbers of blocks, a positive width and positive channels are needed"
            )
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs, stages, laterals = width, [], []
        for stage, count in enumerate(blocks):
            inner = width * 2**stage
            layers = []
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(Bottleneck(inputs, inner, stride))
                inputs = 4 * inner
            stages.append(nn.Sequential(*layers))
            laterals.append(nn.Conv2d(inputs, channels, 1))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.laterals = nn.ModuleList(laterals)
        self.smooth = nn.Conv2d(channels, channels, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """P2 (B, channels, S / 4, S / 4) of images (B, 3, S, S), RGB in [0, 1]."""
        features = F.leaky_relu(self.bn1(self.conv1((images - self.mean) / self.std)), SLOPE)
        features = F.max_pool2d(features, 3, 2, 1)
        levels = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
            levels.append(features)
        pyramid = self.laterals[3](levels[3])
        for index in (2, 1, 0):
            lateral = self.laterals[index](levels[index])
            larger = F.interpolate(
                pyramid, size=lateral.shape[-2:], mode="bilinear", align_corners=False
            )
            pyramid = lateral + larger
        return self.smooth(pyramid)


def roi_align(features: Tensor, boxes: Tensor, size: int, scale: float) -> Tensor:
    """Average of bilinear samples in each of size x size bins of one box per image.

    features (B, C, H, W); boxes (B, 4) x1, y1, x2, y2 in continuous image pixels (first pixel's
    centre at 0.5); scale maps image pixels to cells. Returns (B, C, size, size). The number of
    samples per bin and axis is the bin's size in cells, rounded up, of the largest box of the
    batch (sampling_ratio -1 takes it per box). Samples outside the map are zero.
    """
    height, width = features.shape[-2:]
    x1, y1, x2, y2 = (boxes * scale).unbind(-1)
    samples = max(1, int(torch.ceil(torch.stack([x2 - x1, y2 - y1]).max() / size).item()))
    n = size * samples
    steps = (torch.arange(n, dtype=features.dtype, device=features.device) + 0.5) / n
    x = x1[:, None] + (x2 - x1)[:, None] * steps
    y = y1[:, None] + (y2 - y1)[:, None] * steps
    grid = torch.stack(
        [
            (2 * x / width - 1)[:, None, :].expand(-1, n, -1),
            (2 * y / height - 1)[:, :, None].expand(-1, -1, n),
        ],
        -1,
    )
    sampled = F.grid_sample(features, grid, mode="bilinear", align_corners=False)
    return F.avg_pool2d(sampled, samples)
