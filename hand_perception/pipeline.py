"""The page to read first: an image goes in, a Scene comes out.

detect -> crop -> network -> (fuse over time) -> solve the hand -> place it in the camera
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hand_perception.camera import depth_scale
from hand_perception.crops import crop_around, crop_to_image
from hand_perception.detection import (
    HandTracker,
    PalmDetector,
    TrackingOptions,
    box_from_landmarks,
)
from hand_perception.fitting import FitResult, FitState, HandFitter
from hand_perception.fusion import FrameFeatures, StreamingFusion
from hand_perception.geometry import (
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    mirror_axis_angle,
    rigid_transform,
)
from hand_perception.hand_model import HandModel
from hand_perception.networks import load_network, resolve_device
from hand_perception.networks.deformer import Deformer
from hand_perception.types import (
    SIDES,
    Box,
    Camera,
    Crop,
    FloatArray,
    HandPerceptionError,
    HandPose,
    Prediction,
    Scene,
    Side,
)

DEFAULT_METHOD = "landmark_fit"
GIVEN_BOX_MARGIN = 1.4
"""A crop is this much larger than the longer side of a box that the caller gives."""
NDArrayU8 = NDArray[np.uint8]


@dataclass(frozen=True)
class _Seen:
    """One hand that a network has looked at."""

    track_id: int
    crop: Crop
    row: int


@dataclass(frozen=True)
class _Answer:
    """One hand that is ready to be solved: the crop it lies in and what is known of it there."""

    track_id: int
    crop: Crop
    prediction: Prediction


class HandPerception:
    """Both hands of a stream of images, one after the other; not safe to share among threads."""

    def __init__(
        self,
        network: torch.nn.Module,
        tracker: HandTracker,
        hand_model: HandModel,
        *,
        device: torch.device,
        fusion: StreamingFusion | None = None,
        hand_size_m: float | None = None,
    ) -> None:
        """Parts are injected; `load` makes the usual ones. hand_model is a right hand."""
        self._network = network
        self._tracker = tracker
        self._fusion = fusion
        self._device = device
        self._models: dict[Side, HandModel] = {
            "right": hand_model.to(device),
            "left": hand_model.mirrored().to(device),
        }
        self._fitter = HandFitter(self._models["right"])
        self._hand_size_m = hand_size_m
        self._states: dict[int, FitState] = {}
        self._given: set[Side] = set()
        self._stamp_s: float | None = None

    @classmethod
    def load(
        cls,
        method: str = DEFAULT_METHOD,
        device: str = "auto",
        *,
        models_dir: str | Path | None = None,
        hand_model: str | Path | None = None,
        hand_size_m: float | None = None,
        lag: int = 0,
        gap_s: float | None = None,
        tracking: TrackingOptions | None = None,
    ) -> HandPerception:
        """The pipeline of a method, with pretrained weights.

        method: a name in `networks.METHODS`; device: auto, cpu, cuda or cuda:N; hand_model: a
        MANO file or folder of yours instead of the free hand; hand_size_m: wrist to middle
        knuckle of this user, which a single camera cannot see; lag: temporal methods answer this
        many frames late, 0 at once; gap_s: seconds between the frames of a temporal window, the
        method's own when None. Raises HandPerceptionError for what is unknown, missing or broken.
        """
        target = resolve_device(device)
        network = load_network(method, device, models_dir)
        fusion = None
        if isinstance(network, Deformer):
            fusion = StreamingFusion(network, lag=lag, gap_s=gap_s or network.config.gap_s)
        elif lag:
            raise HandPerceptionError(
                f"method {method!r} looks at single frames: lag is {lag}, it must be 0"
            )
        return cls(
            network,
            HandTracker(PalmDetector.load(device=str(target)), tracking),
            HandModel.load(hand_model),
            device=target,
            fusion=fusion,
            hand_size_m=hand_size_m,
        )

    def hand_model(self, side: Side) -> HandModel:
        """The hand model of a side, whose faces the vertices of a HandPose belong to."""
        return self._models[side]

    def reset(self) -> None:
        """Forget all hands, as before the first image."""
        self._tracker.reset()
        if self._fusion is not None:
            self._fusion.reset()
        self._states.clear()
        self._given.clear()
        self._stamp_s = None

    @torch.inference_mode()
    def process(
        self,
        image: NDArrayU8,
        camera: Camera,
        stamp_s: float,
        boxes: Mapping[Side, tuple[float, float, float, float]] | None = None,
        depth: NDArray[np.float32] | None = None,
    ) -> Scene:
        """The hands in an image (H, W, 3) uint8 RGB of a camera, taken at a stamp, seconds.

        boxes {"left": (x, y, width, height)}, image pixels, say where the hands are and skip
        detection; depth (H, W) metres, registered with the image, sets their distance and size.
        Stamps should rise; one that does not, or a long silence, starts anew. With a lag the
        Scene is that of an earlier stamp. Raises HandPerceptionError for unusable input.
        """
        self._check(image, camera, stamp_s)
        if self._stamp_s is not None and stamp_s <= self._stamp_s:
            self.reset()
        elapsed = 0.0 if self._stamp_s is None else stamp_s - self._stamp_s
        self._stamp_s = stamp_s
        if boxes is None:
            seen, output = self._follow(image, camera, stamp_s)
        else:
            seen, output = self._look_at(image, camera, boxes)
        answered_s, answers = self._fuse(stamp_s, seen, output)
        hands = self._solve(answers, camera, elapsed, depth)
        return Scene(answered_s, hands)

    def _follow(
        self, image: NDArrayU8, camera: Camera, stamp_s: float
    ) -> tuple[list[_Seen], Prediction | FrameFeatures | None]:
        """Look where the tracker says; a hand whose side turns out to be another, once more."""
        boxes = self._tracker.boxes(image, stamp_s)
        crops = [crop_around(image, box, camera) for box in boxes]
        output = self._run(crops)
        landmarks = _image_landmarks(output, crops, camera)
        presence, right_score = _scores(output)
        tracks = self._tracker.update(boxes, landmarks, presence, right_score, stamp_s)
        seen = [_Seen(track.track_id, crops[track.row], track.row) for track in tracks]
        again = [i for i, track in enumerate(tracks) if crops[track.row].box.side != track.side]
        if again:
            better = [
                replace(
                    box_from_landmarks(tracks[i].landmarks),
                    side=tracks[i].side,
                    track_id=tracks[i].track_id,
                )
                for i in again
            ]
            fresh = [crop_around(image, box, camera) for box in better]
            output = _cat(output, self._run(fresh))
            for row, (i, crop) in enumerate(zip(again, fresh, strict=True), start=len(crops)):
                seen[i] = _Seen(tracks[i].track_id, crop, row)
                self._states.pop(tracks[i].track_id, None)
        return seen, output

    def _look_at(
        self,
        image: NDArrayU8,
        camera: Camera,
        boxes: Mapping[Side, tuple[float, float, float, float]],
    ) -> tuple[list[_Seen], Prediction | FrameFeatures | None]:
        """Look into boxes of known sides: first upright, then turned as the hand turns out."""
        rough = [_given_box(side, values) for side, values in boxes.items()]
        crops = [crop_around(image, box, camera) for box in rough]
        landmarks = _image_landmarks(self._run(crops), crops, camera)
        turned = [
            replace(box_from_landmarks(points), side=box.side, track_id=box.track_id)
            for box, points in zip(rough, landmarks, strict=True)
        ]
        crops = [crop_around(image, box, camera) for box in turned]
        seen = [_Seen(box.track_id, crops[row], row) for row, box in enumerate(turned)]
        return seen, self._run(crops)

    def _run(self, crops: Sequence[Crop]) -> Prediction | FrameFeatures | None:
        """What the network says of each crop alone; None without crops."""
        if not crops:
            return None
        pixels = torch.from_numpy(np.stack([crop.image for crop in crops])).to(self._device)
        images = pixels.permute(0, 3, 1, 2).float() / 255.0
        intrinsics = self._stack([crop.intrinsics for crop in crops])
        if isinstance(self._network, Deformer):
            return self._network.encode(images, intrinsics)
        return self._network(images, intrinsics)

    def _fuse(
        self, stamp_s: float, seen: list[_Seen], output: Prediction | FrameFeatures | None
    ) -> tuple[float, list[_Answer]]:
        """The prediction for each hand, and the stamp that it is for."""
        rows = [hand.row for hand in seen]
        if self._fusion is None:
            assert not isinstance(output, FrameFeatures)
            picked = [] if output is None else [output[[row]] for row in rows]
            answers = [
                _Answer(hand.track_id, hand.crop, prediction)
                for hand, prediction in zip(seen, picked, strict=False)
            ]
            return stamp_s, answers
        assert not isinstance(output, Prediction)
        fused = self._fusion.update(
            stamp_s,
            [hand.track_id for hand in seen],
            output[rows] if output is not None else None,
            [hand.crop for hand in seen],
        )
        answered_s = min((f.stamp_s for f in fused), default=stamp_s)
        answers = [
            _Answer(f.track_id, f.crop, f.prediction) for f in fused if f.stamp_s == answered_s
        ]
        return answered_s, answers

    def _solve(
        self,
        answers: list[_Answer],
        camera: Camera,
        elapsed_s: float,
        depth: NDArray[np.float32] | None,
    ) -> list[HandPose]:
        """Pose, shape and place of every hand; their memory is kept by track."""
        alive = {answer.track_id for answer in answers}
        alive |= {track.track_id for track in self._tracker.tracks}
        self._states = {key: state for key, state in self._states.items() if key in alive}
        if not answers:
            return []
        prediction = Prediction.cat([answer.prediction for answer in answers])
        intrinsics = self._stack([answer.crop.intrinsics for answer in answers])
        before = FitState.gather([self._states.get(answer.track_id) for answer in answers])
        fit = self._fitter.fit(prediction, intrinsics, before, elapsed_s, self._hand_size_m)
        self._states |= zip((a.track_id for a in answers), fit.state.split(), strict=True)
        posed = (
            self._models["right"]
            .with_shape(fit.betas)
            .with_pose(fit.global_orient, fit.hand_pose, fit.transl)
        )
        vertices = posed.mesh()
        hands = [
            self._hand_pose(answer, prediction, fit, vertices[row], row, camera, depth)
            for row, answer in enumerate(answers)
            if bool(fit.valid[row])
        ]
        return sorted(hands, key=lambda hand: SIDES.index(hand.side))

    def _hand_pose(
        self,
        answer: _Answer,
        prediction: Prediction,
        fit: FitResult,
        mesh: Tensor,
        row: int,
        camera: Camera,
        depth: NDArray[np.float32] | None,
    ) -> HandPose:
        """A solved right hand of a crop as the hand it is, in the camera frame."""
        crop = answer.crop
        side: Side = "left" if crop.mirrored else "right"
        M = crop.M_camera_crop
        joints = _array(fit.joints[row]) @ M.T
        vertices = _array(mesh) @ M.T
        scale = None if depth is None else depth_scale(depth, joints, camera)
        if scale is not None:
            joints, vertices = joints * scale, vertices * scale
        # The rotation of a mirrored hand, seen in the mirror, then turned into the camera frame.
        orient, pose = fit.global_orient[row].cpu().double(), fit.hand_pose[row].cpu().double()
        if crop.mirrored:
            orient, pose = mirror_axis_angle(orient), mirror_axis_angle(pose)
        rotation = torch.from_numpy(crop.R_camera_crop) @ axis_angle_to_matrix(orient)
        origin = _array(self._models[side].with_shape(fit.betas[row]).joints[0])
        return HandPose(
            side=side,
            score=float(prediction.presence[row]),
            joints_3d=joints,
            joints_2d=crop_to_image(_array(prediction.joints_2d[row]), crop, camera),
            joint_confidence=_array(fit.joint_confidence[row]),
            vertices=vertices,
            global_orient=matrix_to_axis_angle(rotation).numpy(),
            hand_pose=pose.numpy(),
            betas=_array(fit.betas[row]),
            transl=joints[0] - origin,
            T_camera_wrist=rigid_transform(rotation, torch.from_numpy(joints[0])).numpy(),
            joint_angles=_array(fit.joint_angles[row]),
            track_id=answer.track_id,
        )

    def _stack(self, arrays: Sequence[FloatArray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(self._device, torch.float32)

    @staticmethod
    def _check(image: Any, camera: Camera, stamp_s: float) -> None:
        shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", None)
        if shape is None or len(shape) != 3 or shape[2] != 3 or dtype != np.uint8:
            raise HandPerceptionError(
                f"image is {dtype or type(image).__name__} of shape {shape}; "
                "uint8 RGB (height, width, 3) is needed"
            )
        if shape[:2] != (camera.height, camera.width):
            raise HandPerceptionError(
                f"image is {shape[1]}x{shape[0]}, its camera says "
                f"{camera.width}x{camera.height}; both must agree"
            )
        if not np.isfinite(stamp_s):
            raise HandPerceptionError(f"stamp is {stamp_s}; it must be a finite time in seconds")


def _given_box(side: Side, values: tuple[float, float, float, float]) -> Box:
    if side not in SIDES:
        raise HandPerceptionError(f"boxes name the side {side!r}; allowed are left and right")
    if len(values) != 4 or not np.all(np.isfinite(values)) or min(values[2:]) <= 0:
        raise HandPerceptionError(
            f"the {side} box is {values}; it must be (x, y, width, height), finite, with a size"
        )
    x, y, width, height = values
    center = (x + width / 2, y + height / 2)
    # Given hands keep identities of their own, apart from the tracker's.
    return Box(
        center, GIVEN_BOX_MARGIN * max(width, height), side=side, track_id=-2 - SIDES.index(side)
    )


def _image_landmarks(
    output: Prediction | FrameFeatures | None, crops: Sequence[Crop], camera: Camera
) -> FloatArray:
    if output is None:
        return np.zeros((0, 21, 2))
    points = _array(output.joints_2d)
    return np.stack([crop_to_image(p, c, camera) for p, c in zip(points, crops, strict=True)])


def _scores(output: Prediction | FrameFeatures | None) -> tuple[FloatArray, FloatArray]:
    if output is None:
        return np.zeros(0), np.zeros(0)
    return _array(output.presence), _array(output.right_score)


def _cat(
    first: Prediction | FrameFeatures | None, second: Prediction | FrameFeatures | None
) -> Prediction | FrameFeatures | None:
    if isinstance(first, FrameFeatures) and isinstance(second, FrameFeatures):
        return FrameFeatures.cat([first, second])
    assert isinstance(first, Prediction) and isinstance(second, Prediction)
    return Prediction.cat([first, second])


def _array(tensor: Tensor) -> FloatArray:
    return tensor.detach().cpu().double().numpy()
