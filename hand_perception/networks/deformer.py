"""The Deformer: one latent per frame, a transformer over time, and dynamic fusion of hand poses.

Fu et al., "Deformer: Dynamic Fusion Transformer for Robust Hand Pose Estimation", ICCV 2023.
Two configurations of one code: `backbone="landmark"` stands on MediaPipe's hand landmark network,
`backbone="resnet50_fpn"` is the paper's. Where this departs from the paper, the docstring says so.

Every crop shows a right hand, pointing up, in its own crop frame; poses of the wrist are predicted
there and rotated into the target's crop frame before they are fused.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from hand_perception.fusion import (
    FrameFeatures,
    FusionMode,
    carry_poses,
    fuse_poses,
    fusion_weights,
)
from hand_perception.geometry import matrix_to_6d, matrix_to_axis_angle, rotation_6d_to_matrix
from hand_perception.hand_model import HandModel
from hand_perception.networks.attention import (
    DecoderLayer,
    EncoderLayer,
    grid_encoding,
    sine_encoding,
    soft_argmax,
)
from hand_perception.networks.layers import CROP_SIZE, LandmarkNetwork
from hand_perception.networks.resnet_fpn import ResNetFPN, roi_align
from hand_perception.skeleton import BONES
from hand_perception.types import HandPerceptionError, Prediction


@dataclass(frozen=True)
class DeformerConfig:
    """Sizes of a Deformer; the defaults are the compact configuration."""

    backbone: Literal["landmark", "resnet50_fpn"] = "landmark"
    image_size: int = 224
    """Side of a crop, pixels."""
    grid: int = 7
    """Tokens per side of a frame; 7 for the landmark backbone."""
    width: int = 192
    heads: int = 8
    feedforward: int = 384
    spatial_layers: int = 2
    """Of the encoder and of the decoder."""
    temporal_layers: int = 3
    """Of the encoder and of the decoder."""
    hidden: tuple[int, ...] = (512, 256)
    """Hidden layers of the pose heads."""
    dropout: float = 0.0
    gap_s: float = 1 / 15
    """Nominal distance of the frames of a window: the unit of time and of motions."""
    own_stage: bool = False
    """Landmark backbone only: tokens come from a trainable copy of the trunk's last stage."""
    resnet_blocks: tuple[int, ...] = (3, 4, 6, 3)
    resnet_width: int = 64
    pyramid_channels: int = 256

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DeformerConfig:
        """The configuration in a mapping, say of a yaml file; unknown names are refused."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise HandPerceptionError(
                f"unknown settings {unknown} of the deformer; allowed are {sorted(known)}"
            )
        tuples: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        config = cls(**tuples)
        if config.backbone not in ("landmark", "resnet50_fpn"):
            raise HandPerceptionError(
                f"backbone is {config.backbone!r}; allowed are landmark and resnet50_fpn"
            )
        if config.backbone == "landmark" and (config.grid, config.image_size) != (7, CROP_SIZE):
            raise HandPerceptionError("the landmark backbone has grid 7 and image_size 224")
        if config.width % (4 * config.heads):
            raise HandPerceptionError(
                f"width {config.width} must be a multiple of 4 x heads = {4 * config.heads}"
            )
        return config


class BackboneFeatures(NamedTuple):
    """What a backbone sees of B crops; with a frozen backbone this is what training caches."""

    coarse: Tensor
    """(B, C, g, g): the tokens (landmark: stride 32; unused there when `own_stage`)."""
    fine: Tensor | None = None
    """(B, 112, 2g, 2g), landmark backbone: stride 16."""
    pooled: Tensor | None = None
    """(B, 1152), landmark backbone: what its heads read."""
    screen: Tensor | None = None
    """(B, 21, 3) crop pixels, landmark backbone."""
    world: Tensor | None = None
    """(B, 21, 3) metres, landmark backbone."""
    presence: Tensor | None = None
    """(B,), landmark backbone."""
    right_score: Tensor | None = None
    """(B,), landmark backbone."""


@dataclass(frozen=True)
class DeformerOutput:
    """Everything that losses and the pipeline need of B windows of T frames.

    Poses are 6D (..., 16, 6), wrist first; "own" means in each frame's own crop frame.
    """

    pose: Tensor
    """(B, T, 16, 6) own."""
    forward_motion: Tensor
    """(B, T, 16, 6) own; the change until the next frame when that is gap_s away."""
    backward_motion: Tensor
    """(B, T, 16, 6) own; the change until the previous frame when that is gap_s away."""
    confidence: Tensor
    """(B, T) logits."""
    betas: Tensor
    """(B, 10), one shape for the window."""
    carried: Tensor
    """(B, T, 16, 6) every frame's pose carried to the target frame, target's crop frame."""
    rotations: Tensor
    """(B, 16, 3, 3) fused pose of the target frame, target's crop frame."""
    joints_3d: Tensor
    """(B, 21, 3) metres, relative to the wrist, target's crop frame."""
    joints_2d: Tensor
    """(B, 21, 2) crop pixels of the target frame."""
    joints_log_var: Tensor
    """(B, 21) log of the variance of joints_2d per axis, in units of (image_size)^2."""
    joint_confidence: Tensor
    """(B, 21) probability that joints_2d errs by less than 10 % of the hand's size."""
    presence: Tensor
    """(B,)."""
    right_score: Tensor
    """(B,)."""
    latent: Tensor
    """(B, D) of the target frame."""
    frame_joints_2d: Tensor
    """(B, T, 21, 2) crop pixels, from the heatmaps of each frame."""
    frame_pose: Tensor | None = None
    """(B, T, 16, 6) own, from each frame alone (monocular); `forward` alone gives it."""
    frame_betas: Tensor | None = None
    """(B, T, 10) from each frame alone; `forward` alone gives it."""

    def prediction(self) -> Prediction:
        """The target frame's hand."""
        return Prediction(
            joints_2d=self.joints_2d,
            joints_3d=self.joints_3d,
            joint_confidence=self.joint_confidence,
            presence=self.presence,
            right_score=self.right_score,
            global_orient=matrix_to_axis_angle(self.rotations[:, 0]),
            hand_pose=matrix_to_axis_angle(self.rotations[:, 1:]),
            betas=self.betas,
            latent=self.latent,
        )


class LandmarkBackbone(nn.Module):
    """MediaPipe's landmark network, frozen."""

    channels = 192
    fine_channels = 112

    def __init__(self) -> None:
        super().__init__()
        self.network = LandmarkNetwork().requires_grad_(False)

    def forward(self, images: Tensor) -> BackboneFeatures:
        """Features of crops (B, 3, 224, 224), RGB in [0, 1]."""
        with torch.no_grad():
            maps = self.network.trunk(images)
            landmarks = self.network.heads(maps)
        return BackboneFeatures(
            coarse=maps.stride32,
            fine=maps.stride16,
            pooled=maps.top.mean((2, 3)),
            screen=landmarks.screen,
            world=landmarks.world,
            presence=landmarks.presence,
            right_score=landmarks.handedness,
        )


class ResNetBackbone(nn.Module):
    """ResNet-50-FPN; RoIAlign of the whole crop on P2."""

    def __init__(self, config: DeformerConfig) -> None:
        super().__init__()
        self.channels = config.pyramid_channels
        self.network = ResNetFPN(config.resnet_blocks, config.resnet_width, self.channels)
        self.grid = config.grid

    def forward(self, images: Tensor) -> BackboneFeatures:
        """Features of crops (B, 3, S, S), RGB in [0, 1]."""
        side = float(images.shape[-1])
        boxes = images.new_tensor([0.0, 0.0, side, side]).expand(len(images), 4)
        return BackboneFeatures(roi_align(self.network(images), boxes, self.grid, 0.25))


class LandmarkPrior(nn.Module):
    """What the landmark network says of a hand, as a vector that is added to the query."""

    def __init__(self, width: int, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.pooled = nn.Sequential(nn.LayerNorm(1152), nn.Linear(1152, width))
        self.landmarks = nn.Sequential(
            nn.Linear(63 + 63 + 60 + 2, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    def forward(self, features: BackboneFeatures) -> Tensor:
        """(B, D)."""
        f = features
        assert f.pooled is not None and f.screen is not None and f.world is not None
        assert f.presence is not None and f.right_score is not None
        screen = f.screen * (2 / self.image_size)
        screen = torch.cat([screen[..., :2] - 1, screen[..., 2:]], -1)
        parents, children = zip(*BONES, strict=True)
        bones = F.normalize(f.world[:, list(children)] - f.world[:, list(parents)], dim=-1)
        scores = torch.stack([f.presence, f.right_score], -1)
        seen = [screen.flatten(1), 10 * f.world.flatten(1), bones.flatten(1), scores]
        return self.pooled(f.pooled) + self.landmarks(torch.cat(seen, -1))


class HeatmapHead(nn.Module):
    """Encoder tokens -> 21 heatmaps -> joints (eq. 10), a 3-layer perceptron per cell.

    In the landmark configuration the maps have twice the tokens' resolution, the trunk's stride
    16 map joins in, and the landmark network's own 2D joints enter as Gaussian bumps of learned
    width added to the logits: the head starts from them and corrects them.
    """

    def __init__(self, config: DeformerConfig, fine_channels: int | None) -> None:
        super().__init__()
        width = config.width
        self.scale = 1 if fine_channels is None else 2
        hidden = width if fine_channels is None else 64
        self.lift = nn.Conv2d(width, hidden * self.scale**2, 1)
        self.fine = None if fine_channels is None else nn.Conv2d(fine_channels, hidden, 1)
        self.middle = nn.Conv2d(hidden, hidden, 1)
        self.maps = nn.Conv2d(hidden, 21, 1)
        self.beta = nn.Parameter(torch.ones(21))
        self.log_sigma = nn.Parameter(torch.full((21,), -2.5)) if fine_channels else None
        nn.init.normal_(self.maps.weight, std=0.01)

    def forward(
        self, memory: Tensor, fine: Tensor | None, prior: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """memory (B, D, g, g), fine (B, C, 2g, 2g), prior (B, 21, 2) in [0, 1] of the crop ->
        joints (B, 21, 2) in [0, 1] and probabilities at the tokens (B, 21, g, g)."""
        hidden = F.pixel_shuffle(self.lift(memory), self.scale)
        if self.fine is not None and fine is not None:
            hidden = hidden + self.fine(fine)
        logits = self.maps(F.relu(self.middle(F.relu(hidden)))) * self.beta[:, None, None]
        if self.log_sigma is not None and prior is not None:
            side = logits.shape[-1]
            centres = (torch.arange(side, dtype=prior.dtype, device=prior.device) + 0.5) / side
            squares = (centres - prior[..., None]) ** 2
            distance = squares[:, :, 1, :, None] + squares[:, :, 0, None, :]
            logits = logits - distance * (0.5 * torch.exp(-2 * self.log_sigma))[:, None, None]
        joints, probability = soft_argmax(logits)
        return joints, F.avg_pool2d(probability, self.scale) * self.scale**2


class PoseHead(nn.Module):
    """A feature and 2D joints -> hidden -> several linear outputs (protocols: 298-1024-512)."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], outputs: Mapping[str, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(inputs, size), nn.LeakyReLU()]
            inputs = size
        self.body = nn.Sequential(*layers)
        self.sizes = dict(outputs)
        self.out = nn.Linear(inputs, sum(outputs.values()))
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)

    def forward(self, feature: Tensor) -> dict[str, Tensor]:
        """(..., inputs) -> each named output (..., size)."""
        values = self.out(self.body(feature)).split(list(self.sizes.values()), -1)
        return dict(zip(self.sizes, values, strict=True))


class Deformer(nn.Module):
    """Spatial transformer per frame, temporal transformer per window, dynamic fusion."""

    def __init__(self, config: DeformerConfig, hand_model: HandModel) -> None:
        super().__init__()
        self.config = config
        self.hand_model = _warm(hand_model)
        width, layer = config.width, (config.heads, config.feedforward, config.dropout)
        compact = config.backbone == "landmark"
        self.backbone = LandmarkBackbone() if compact else ResNetBackbone(config)
        self.own_stage = (
            copy.deepcopy(self.backbone.network.trunk.stage32).requires_grad_(True)
            if isinstance(self.backbone, LandmarkBackbone) and config.own_stage
            else None
        )
        fine = LandmarkBackbone.fine_channels if compact else None
        self.project = nn.Conv2d(self.backbone.channels, width, 1)
        self.project_fine = nn.Conv2d(fine, width, 2, stride=2) if fine else None
        self.register_buffer("places", grid_encoding(config.grid, width), persistent=False)
        self.places: Tensor
        self.encoder = nn.ModuleList(
            EncoderLayer(width, *layer) for _ in range(config.spatial_layers)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.heatmaps = HeatmapHead(config, fine)
        self.memory = nn.Linear(width + 21, width)
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        self.focal = nn.Linear(1, width)
        self.prior = LandmarkPrior(width, config.image_size) if compact else None
        self.decoder = nn.ModuleList(
            DecoderLayer(width, *layer) for _ in range(config.spatial_layers)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.frame_head = PoseHead(width + 42, config.hidden, {"pose": 96, "betas": 10})
        self.scores = None if compact else nn.Linear(width, 2)

        self.motion_of_crop = nn.Linear(6 + 42, width, bias=False)
        self.temporal_encoder = nn.ModuleList(
            EncoderLayer(width, *layer) for _ in range(config.temporal_layers)
        )
        self.temporal_norm = nn.LayerNorm(width)
        self.shape_query = nn.Parameter(torch.randn(width) * 0.02)
        self.shape_decoder = nn.ModuleList(
            DecoderLayer(width, *layer) for _ in range(config.temporal_layers)
        )
        self.shape_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))
        self.pose_head = PoseHead(
            width + 42,
            config.hidden,
            {"pose": 96, "forward": 96, "backward": 96, "confidence": 1},
        )
        self.joint_head = PoseHead(width + 42, config.hidden, {"offset": 42, "log_var": 21})
        with torch.no_grad():
            # Start from the rest pose, fingers up, and from an error of 5 % of the crop.
            rest = matrix_to_6d(torch.eye(3)).repeat(16)
            rest[:6] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, -1.0])
            self.frame_head.out.bias[:96] = rest
            self.pose_head.out.bias[:96] = rest
            self.joint_head.out.bias[42:] = -6.0
        self.register_buffer("temperature", torch.ones(()))
        self.temperature: Tensor

    def _apply(self, fn: Any, recurse: bool = True) -> Deformer:
        super()._apply(fn, recurse)
        self.hand_model = _warm(self.hand_model.to(self.query.device, self.query.dtype))
        return self

    def encode(self, images: Tensor, intrinsics: Tensor) -> FrameFeatures:
        """What is kept of crops (B, 3, S, S), RGB in [0, 1], intrinsics (B, 3, 3) crop pixels."""
        return self.spatial(self.backbone(images), intrinsics)

    def spatial(self, features: BackboneFeatures, intrinsics: Tensor) -> FrameFeatures:
        """The spatial transformer: backbone features (B, ...) -> one latent per frame.

        Beyond the paper: the query also carries the crop camera's focal length and, with the
        landmark backbone, what that network's heads and pooled feature say.
        """
        size = self.config.image_size
        coarse, fine = features.coarse, features.fine
        if self.own_stage is not None and fine is not None:
            coarse = self.own_stage(fine)
        tokens = self.project(coarse)
        if self.project_fine is not None and fine is not None:
            tokens = tokens + self.project_fine(fine)
        side = tokens.shape[-1]
        tokens = tokens.flatten(2).transpose(1, 2)
        for layer in self.encoder:
            tokens = layer(tokens, self.places)
        tokens = self.encoder_norm(tokens)
        grid = tokens.transpose(1, 2).unflatten(-1, (side, side))
        prior = None if features.screen is None else features.screen[..., :2] / size
        joints, maps = self.heatmaps(grid, fine, prior)
        memory = self.memory(torch.cat([tokens, maps.flatten(2).transpose(1, 2)], -1))
        focal = torch.log(intrinsics[:, :1, 0] / size)
        query = self.query + self.focal(focal)
        if self.prior is not None:
            query = query + self.prior(features)
        query = query[:, None]
        for layer in self.decoder:
            query = layer(query, memory, self.places)
        latent = self.decoder_norm(query[:, 0])
        if features.presence is not None and features.right_score is not None:
            presence, right_score = features.presence, features.right_score
        else:
            assert self.scores is not None
            presence, right_score = self.scores(latent).sigmoid().unbind(-1)
        return FrameFeatures(latent, joints * size, intrinsics, presence, right_score)

    def temporal(
        self,
        frames: FrameFeatures,
        *,
        offsets_s: Tensor,
        crop_rotation: Tensor,
        valid: Tensor,
        target: Tensor,
        mode: FusionMode = "dynamic",
    ) -> DeformerOutput:
        """The temporal transformer and dynamic fusion over windows of T frames.

        frames (B, T, ...); offsets_s (B, T) seconds relative to the target frame, rising;
        crop_rotation (B, T, 3, 3) R_target_frame between crop frames; valid (B, T), true at
        target (B,), whose other frames have no influence where it is false.

        Beyond the paper: time is seconds over gap_s instead of an index, and each token knows
        how its crop is turned against the target's and where its joints lie there.
        """
        size, rows = self.config.image_size, torch.arange(len(target), device=target.device)
        keep = valid[..., None]
        latent = torch.where(keep, frames.latent, torch.zeros_like(frames.latent))
        joints = torch.where(keep[..., None], frames.joints_2d, frames.joints_2d.new_zeros(()))
        places = joints.flatten(-2) * (2 / size) - 1
        turn = matrix_to_6d(crop_rotation) - matrix_to_6d(torch.eye(3).to(crop_rotation))
        warped = _into_target(joints, frames.intrinsics, crop_rotation, rows, target)
        shift = (warped.flatten(-2) * (2 / size) - 1 - places[rows, target][:, None]).clamp(-2, 2)
        moved = torch.where(keep, torch.cat([turn, shift], -1), turn.new_zeros(()))
        time = sine_encoding(offsets_s / self.config.gap_s, self.config.width)
        tokens = latent + self.motion_of_crop(moved)
        for layer in self.temporal_encoder:
            tokens = layer(tokens, time, valid)
        tokens = self.temporal_norm(tokens)
        query = self.shape_query.expand(len(tokens), 1, -1)
        for layer in self.shape_decoder:
            query = layer(query, tokens, time, valid)
        betas = self.shape_head(query[:, 0])
        heads = self.pose_head(torch.cat([tokens, places], -1))
        pose, forward, backward = (
            heads[name].unflatten(-1, (16, 6)) for name in ("pose", "forward", "backward")
        )
        confidence = heads["confidence"][..., 0]
        carried = carry_poses(
            pose,
            forward,
            backward,
            offsets_s=offsets_s,
            crop_rotation=crop_rotation,
            valid=valid,
            target=target,
            gap_s=self.config.gap_s,
        )
        weights = fusion_weights(confidence, valid, target, mode)
        rotations = rotation_6d_to_matrix(fuse_poses(carried, weights))
        hand = self.hand_model.with_shape(betas).with_rotations(rotations)
        joints_3d = hand.joints - hand.joints[:, :1]
        refined = self.joint_head(torch.cat([tokens[rows, target], places[rows, target]], -1))
        joints_2d = joints[rows, target] + size * refined["offset"].unflatten(-1, (21, 2))
        log_var = refined["log_var"].clamp(-14, 2)
        return DeformerOutput(
            pose=pose,
            forward_motion=forward,
            backward_motion=backward,
            confidence=confidence,
            betas=betas,
            carried=carried,
            rotations=rotations,
            joints_3d=joints_3d,
            joints_2d=joints_2d,
            joints_log_var=log_var,
            joint_confidence=joint_confidence(joints_2d / size, log_var, self.temperature),
            presence=frames.presence[rows, target],
            right_score=frames.right_score[rows, target],
            latent=frames.latent[rows, target],
            frame_joints_2d=frames.joints_2d,
        )

    def forward(
        self,
        images: Tensor | BackboneFeatures,
        intrinsics: Tensor,
        *,
        offsets_s: Tensor,
        crop_rotation: Tensor,
        valid: Tensor,
        target: Tensor,
        mode: FusionMode = "dynamic",
    ) -> DeformerOutput:
        """Windows of T frames: images (B, T, 3, S, S), RGB in [0, 1], or cached features with
        (B, T, ...) in their place; intrinsics (B, T, 3, 3); the rest as in `temporal`."""
        lead = intrinsics.shape[:2]
        if isinstance(images, BackboneFeatures):
            features = BackboneFeatures._make(
                None if x is None else x.flatten(0, 1) for x in images
            )
        else:
            features = self.backbone(images.flatten(0, 1))
        frames = self.spatial(features, intrinsics.flatten(0, 1)).reshape(*lead)
        output = self.temporal(
            frames,
            offsets_s=offsets_s,
            crop_rotation=crop_rotation,
            valid=valid,
            target=target,
            mode=mode,
        )
        places = frames.joints_2d.flatten(-2) * (2 / self.config.image_size) - 1
        alone = self.frame_head(torch.cat([frames.latent, places], -1))
        values = {f.name: getattr(output, f.name) for f in fields(output)}
        values |= {"frame_pose": alone["pose"].unflatten(-1, (16, 6))}
        return DeformerOutput(**values | {"frame_betas": alone["betas"]})

    @classmethod
    def build(cls, config: DeformerConfig, hand_model: HandModel | None = None) -> Deformer:
        """An untrained network on the shipped landmark weights and the free hand model."""
        network = cls(config, hand_model or HandModel.load())
        if isinstance(network.backbone, LandmarkBackbone):
            pretrained = LandmarkNetwork.load()
            network.backbone.network.load_state_dict(pretrained.state_dict())
            if network.own_stage is not None:
                network.own_stage.load_state_dict(pretrained.trunk.stage32.state_dict())
        return network

    @classmethod
    def load(cls, path: Path | str, hand_model: HandModel | None = None) -> Deformer:
        """A trained network in eval mode, its sizes from the file's metadata.

        Weights that the file leaves out must be the frozen landmark network's, which are taken
        from models/landmarks. Raises HandPerceptionError naming what is missing or unknown.
        """
        if not Path(path).is_file():
            raise HandPerceptionError(f"weights {path} do not exist; a safetensors file is needed")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            weights = load_file(path)
        except (SafetensorError, OSError) as error:
            raise HandPerceptionError(f"weights {path} are no safetensors file: {error}") from error
        if "network" not in metadata:
            raise HandPerceptionError(f"weights {path} carry no network configuration")
        config = DeformerConfig.from_dict(json.loads(metadata["network"]))
        network = cls.build(config, hand_model)
        expected = network.state_dict()
        frozen = "backbone." if config.backbone == "landmark" else "\0"
        missing = [n for n in expected if n not in weights and not n.startswith(frozen)]
        unknown = [n for n in weights if n not in expected]
        wrong = [
            f"{n} {tuple(w.shape)} instead of {tuple(expected[n].shape)}"
            for n, w in weights.items()
            if n in expected and w.shape != expected[n].shape
        ]
        if missing or unknown or wrong:
            raise HandPerceptionError(
                f"weights {path} do not fit their configuration: missing {missing[:3]}, "
                f"unknown {unknown[:3]}, shapes {wrong[:3]}"
            )
        network.load_state_dict({k: w.float() for k, w in weights.items()}, strict=False)
        return network.eval()

    def metadata(self) -> dict[str, str]:
        """What a weight file must say of this network, for `load`."""
        return {"network": json.dumps(asdict(self.config))}


def joint_confidence(joints: Tensor, log_var: Tensor, temperature: Tensor) -> Tensor:
    """Probability (B, 21) that joints (B, 21, 2) err by less than 10 % of the hand's size.

    The error is taken as an isotropic Gaussian of variance exp(log_var) (B, 21) x temperature
    per axis, whose length is Rayleigh distributed; the hand's size is the longer side of the
    box around its joints. temperature is calibrated on held-out data.
    """
    extent = (joints.amax(-2) - joints.amin(-2)).amax(-1, keepdim=True).detach()
    radius_sq = (0.1 * extent) ** 2
    return 1 - torch.exp(-radius_sq / (2 * temperature * log_var.exp()))


def _warm(hand_model: HandModel) -> HandModel:
    # Fill the model's caches outside of inference mode: tensors made in it cannot be trained with.
    with torch.inference_mode(False):
        eye = torch.eye(3, dtype=hand_model.v_template.dtype, device=hand_model.v_template.device)
        _ = hand_model.with_shape().with_rotations(eye.expand(16, 3, 3)).joints
    return hand_model


def _into_target(
    joints: Tensor, intrinsics: Tensor, crop_rotation: Tensor, rows: Tensor, target: Tensor
) -> Tensor:
    # Each frame's joints (B, T, 21, 2) as the target's crop camera would see their rays.
    focal = intrinsics.diagonal(dim1=-2, dim2=-1)[..., None, :2]
    centre = intrinsics[..., None, :2, 2]
    rays = F.pad((joints - centre) / focal, (0, 1), value=1.0) @ crop_rotation.mT
    flat = rays[..., :2] / rays[..., 2:].clamp_min(0.1)
    return flat * focal[rows, target][:, None] + centre[rows, target][:, None]
