"""Building blocks, weight files, and the two pretrained networks that everything stands on.

`PalmNetwork` finds palms in a 192 px picture; `LandmarkNetwork` reads one hand from a 224 px crop,
and its `LandmarkTrunk` is the backbone of the other methods. Both are MediaPipe's
(palm_detection_full and hand_landmark_full of the mediapipe 0.10.14 wheel, Apache-2.0), rewritten
as plain modules;
tools/convert_mediapipe.py makes their weights. Images are (B, 3, S, S) RGB floats in [0, 1].
Loaded networks hold their weights channels last: on a CPU they run almost twice as fast so.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from hand_perception.resources import model_file
from hand_perception.types import HandPerceptionError

PALM_SIZE = 192
"""Side of the palm network's input, pixels."""
CROP_SIZE = 224
"""Side of the landmark network's input, pixels."""


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding for inputs of a size that the stride divides.

    At stride 2 TensorFlow pads less on the top left than on the bottom right, which
    `padding=` cannot say.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(
            in_channels, out_channels, kernel, stride, padding, groups=groups, bias=bias
        )
        before = (kernel - stride) // 2
        after = kernel - stride - before
        self.pads = (before, after, before, after) if stride > 1 and kernel > stride else None

    def forward(self, input: Tensor) -> Tensor:
        if self.pads is not None:
            input = F.pad(input, self.pads)
        return super().forward(input)


def relu6(features: Tensor) -> Tensor:
    """min(max(x, 0), 6), in place: only for what a convolution has just made."""
    return F.relu6(features, inplace=True)


class InvertedResidual(nn.Module):
    """Expand, filter by depth, project (MobileNetV2); adds its input where the shapes agree."""

    def __init__(
        self, in_channels: int, width: int, out_channels: int, kernel: int, stride: int = 1
    ) -> None:
        super().__init__()
        self.expand = SameConv2d(in_channels, width, 1)
        self.depthwise = SameConv2d(width, width, kernel, stride, groups=width)
        self.project = SameConv2d(width, out_channels, 1)
        self.adds_input = stride == 1 and in_channels == out_channels

    def forward(self, features: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""
        inner = relu6(self.depthwise(relu6(self.expand(features))))
        inner = self.project(inner)
        return features + inner if self.adds_input else inner


class FeatureMaps(NamedTuple):
    """What `LandmarkTrunk` sees in a 224 px crop."""

    stride4: Tensor
    """(B, 24, 56, 56)."""
    stride8: Tensor
    """(B, 40, 28, 28)."""
    stride16: Tensor
    """(B, 112, 14, 14)."""
    stride32: Tensor
    """(B, 192, 7, 7)."""
    top: Tensor
    """(B, 1152, 7, 7), after the last activation; its mean feeds the heads."""


class LandmarkTrunk(nn.Module):
    """MediaPipe's hand landmark backbone (2 M parameters, an EfficientNet without SE blocks)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv2d(3, 24, 3, stride=2)
        self.stem_depthwise = SameConv2d(24, 24, 3, groups=24)
        self.stem_project = SameConv2d(24, 16, 1)
        self.stage4 = nn.Sequential(
            InvertedResidual(16, 64, 24, 3, stride=2), InvertedResidual(24, 144, 24, 3)
        )
        self.stage8 = nn.Sequential(
            InvertedResidual(24, 144, 40, 5, stride=2), InvertedResidual(40, 240, 40, 5)
        )
        self.stage16 = nn.Sequential(
            InvertedResidual(40, 240, 80, 3, stride=2),
            InvertedResidual(80, 480, 80, 3),
            InvertedResidual(80, 480, 80, 3),
            InvertedResidual(80, 480, 112, 5),
            InvertedResidual(112, 672, 112, 5),
            InvertedResidual(112, 672, 112, 5),
        )
        self.stage32 = nn.Sequential(
            InvertedResidual(112, 672, 192, 5, stride=2),
            InvertedResidual(192, 1152, 192, 5),
            InvertedResidual(192, 1152, 192, 5),
            InvertedResidual(192, 1152, 192, 5),
        )
        self.top = SameConv2d(192, 1152, 1)
        self.top_depthwise = SameConv2d(1152, 1152, 3, groups=1152)

    def forward(self, images: Tensor) -> FeatureMaps:
        """Feature maps of crops (B, 3, 224, 224), RGB in [0, 1]."""
        stem = relu6(self.stem_depthwise(relu6(self.stem(images))))
        stride4 = self.stage4(self.stem_project(stem))
        stride8 = self.stage8(stride4)
        stride16 = self.stage16(stride8)
        stride32 = self.stage32(stride16)
        top = relu6(self.top_depthwise(relu6(self.top(stride32))))
        return FeatureMaps(stride4, stride8, stride16, stride32, top)


class Landmarks(NamedTuple):
    """What the four heads of `LandmarkNetwork` say of B crops."""

    screen: Tensor
    """(B, 21, 3) crop pixels [0, 224]; z relative to the wrist, roughly in the same unit."""
    presence: Tensor
    """(B,) probability that the crop holds a hand."""
    handedness: Tensor
    """(B,) the original's handedness score; see `landmark_fit` for what it means."""
    world: Tensor
    """(B, 21, 3) metres, axes of the crop (x right, y down, z forward), origin near the palm."""


class LandmarkHeads(nn.Module):
    """Linear heads on the pooled top map."""

    def __init__(self) -> None:
        super().__init__()
        self.handedness = nn.Linear(1152, 1)
        self.presence = nn.Linear(1152, 1)
        self.screen = nn.Linear(1152, 63)
        self.world = nn.Linear(1152, 63)

    def forward(self, maps: FeatureMaps) -> Landmarks:
        """Landmarks of the crops whose trunk maps these are."""
        pooled = maps.top.mean(dim=(2, 3))
        return Landmarks(
            self.screen(pooled).reshape(-1, 21, 3),
            torch.sigmoid(self.presence(pooled)[:, 0]),
            torch.sigmoid(self.handedness(pooled)[:, 0]),
            self.world(pooled).reshape(-1, 21, 3),
        )


class LandmarkNetwork(nn.Module):
    """MediaPipe's hand_landmark_full: `heads(trunk(images))`."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = LandmarkTrunk()
        self.heads = LandmarkHeads()

    def forward(self, images: Tensor) -> Landmarks:
        """Landmarks of crops (B, 3, 224, 224), RGB in [0, 1]."""
        return self.heads(self.trunk(images))

    @classmethod
    def load(cls, path: Path | str | None = None) -> LandmarkNetwork:
        """The pretrained network in eval mode; None takes the shipped weights."""
        network = cls()
        load_weights(network, path or model_file("landmarks/hand_landmark.safetensors"))
        _store_channels_last(network)
        return network.eval()


class PalmBlock(nn.Module):
    """Depthwise 5x5 and pointwise convolution around a skip (BlazeBlock).

    At stride 2 the skip is max pooled; where channels grow it is filled up with zeros.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = SameConv2d(
            in_channels, in_channels, 5, stride, groups=in_channels, bias=False
        )
        self.project = SameConv2d(in_channels, out_channels, 1)
        self.activation = nn.PReLU(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, features: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""
        inner = self.project(self.depthwise(features))
        if self.stride == 2:
            features = F.max_pool2d(features, 2)
        if self.new_channels > 0:
            features = F.pad(features, (0, 0, 0, 0, 0, self.new_channels))
        return self.activation(features + inner)


class PalmUpsample(nn.Module):
    """Twice the size, other channels, plus the finer map of the same shape."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.project = SameConv2d(in_channels, out_channels, 1)
        self.activation = nn.PReLU(out_channels)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(B, C_in, H, W) and (B, C_out, 2H, 2W) -> (B, C_out, 2H, 2W)."""
        larger = F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        return fine + self.activation(self.project(larger))


class PalmHead(nn.Module):
    """Score and geometry of the anchors of one map."""

    def __init__(self, channels: int, anchors_per_cell: int) -> None:
        super().__init__()
        self.scores = SameConv2d(channels, anchors_per_cell, 1)
        self.geometry = SameConv2d(channels, anchors_per_cell * 18, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> logits (B, N) and offsets (B, N, 18), anchors row by row."""
        batch = len(features)
        scores = self.scores(features).permute(0, 2, 3, 1).reshape(batch, -1)
        geometry = self.geometry(features).permute(0, 2, 3, 1).reshape(batch, -1, 18)
        return scores, geometry


class PalmNetwork(nn.Module):
    """MediaPipe's palm_detection_full: an SSD with 2016 anchors on strides 8 and 16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv2d(3, 32, 5, stride=2)
        self.stem_activation = nn.PReLU(32)
        self.stage2 = nn.Sequential(*[PalmBlock(32, 32) for _ in range(4)])
        self.stage4 = nn.Sequential(
            PalmBlock(32, 64, stride=2), *[PalmBlock(64, 64) for _ in range(4)]
        )
        self.stage8 = nn.Sequential(
            PalmBlock(64, 128, stride=2), *[PalmBlock(128, 128) for _ in range(4)]
        )
        self.stage16 = nn.Sequential(
            PalmBlock(128, 256, stride=2), *[PalmBlock(256, 256) for _ in range(4)]
        )
        self.stage32 = nn.Sequential(
            PalmBlock(256, 256, stride=2), *[PalmBlock(256, 256) for _ in range(4)]
        )
        self.up16 = PalmUpsample(256, 256)
        self.refine16 = nn.Sequential(PalmBlock(256, 256), PalmBlock(256, 256))
        self.head16 = PalmHead(256, 6)
        self.up8 = PalmUpsample(256, 128)
        self.refine8 = nn.Sequential(PalmBlock(128, 128), PalmBlock(128, 128))
        self.head8 = PalmHead(128, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Palms in pictures (B, 3, 192, 192), RGB in [0, 1].

        Returns logits (B, 2016), and geometry (B, 2016, 18) in pixels relative to the anchor's
        centre: box centre x, y, width, height, then x, y of 7 palm points. Anchors of stride 8
        come first.
        """
        stride2 = self.stage2(self.stem_activation(self.stem(images)))
        stride8 = self.stage8(self.stage4(stride2))
        stride16 = self.stage16(stride8)
        stride32 = self.stage32(stride16)
        refined16 = self.refine16(self.up16(stride32, stride16))
        refined8 = self.refine8(self.up8(refined16, stride8))
        scores16, geometry16 = self.head16(refined16)
        scores8, geometry8 = self.head8(refined8)
        return torch.cat([scores8, scores16], 1), torch.cat([geometry8, geometry16], 1)

    @classmethod
    def load(cls, path: Path | str | None = None) -> PalmNetwork:
        """The pretrained network in eval mode; None takes the shipped weights."""
        network = cls()
        load_weights(network, path or model_file("palm/palm_detection.safetensors"))
        _store_channels_last(network)
        return network.eval()


def _store_channels_last(network: nn.Module) -> None:
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def load_weights(module: nn.Module, path: Path | str) -> None:
    """Fill every parameter and buffer of a module from a safetensors file, in float32.

    Nothing in the file is executed. Raises HandPerceptionError when the file is missing, is no
    complete safetensors file, holds other names or shapes than the module, or numbers that are
    not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise HandPerceptionError(f"weights {path} do not exist; a safetensors file is needed")
    try:
        weights = load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise HandPerceptionError(
            f"weights {path} are not a complete safetensors file ({error}); "
            "only safetensors is read"
        ) from error
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    missing = sorted(expected.keys() - weights.keys())
    unknown = sorted(weights.keys() - expected.keys())
    if missing or unknown:
        raise HandPerceptionError(
            f"weights {path} belong to another network than {type(module).__name__}: "
            f"missing {missing[:3]}, unknown {unknown[:3]}"
        )
    for name, tensor in weights.items():
        if tuple(tensor.shape) != expected[name]:
            raise HandPerceptionError(
                f"weights {path}: {name} has shape {tuple(tensor.shape)}, "
                f"{type(module).__name__} needs {expected[name]}"
            )
        if not torch.isfinite(tensor).all():
            raise HandPerceptionError(
                f"weights {path}: {name} holds NaN or infinity; all numbers must be finite"
            )
    module.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
