"""The command line, without ROS: hand-perception estimate | train | evaluate | benchmark | demo."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hand_perception.types import SIDES, Camera, HandPerceptionError

if TYPE_CHECKING:
    from hand_perception.pipeline import HandPerception
    from hand_perception.sources import Frame, Source

app = typer.Typer(
    help="See hands: joints, angles and meshes from images, videos, rosbags and cameras.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
evaluate_app = typer.Typer(help="Measure methods on annotated data.", no_args_is_help=True)
app.add_typer(evaluate_app, name="evaluate")

SourceArg = Annotated[
    str, typer.Argument(help="An image, video, folder of images, rosbag, or camera:0.")
]
MethodOption = Annotated[
    str | None, typer.Option(help="Name of the method; the package's default without.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
IntrinsicsOption = Annotated[str | None, typer.Option(help="fx,fy,cx,cy in pixels.")]
HfovOption = Annotated[float | None, typer.Option(help="Horizontal field of view, degrees.")]
YamlOption = Annotated[
    Path | None, typer.Option(help="Calibration file of the ROS camera_calibration format.")
]
DistortionOption = Annotated[
    str | None, typer.Option(help="plumb_bob k1,k2,p1,p2[,k3[,k4,k5,k6]]; with --intrinsics.")
]
HandSizeOption = Annotated[
    float | None, typer.Option(help="Wrist to middle knuckle of this user, metres.")
]
MaxFramesOption = Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.")]
TopicOption = Annotated[str | None, typer.Option(help="Image topic of a rosbag.")]


@app.command()
def estimate(
    source: SourceArg,
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    method: MethodOption = None,
    device: DeviceOption = "auto",
    intrinsics: IntrinsicsOption = None,
    hfov: HfovOption = None,
    camera_yaml: YamlOption = None,
    distortion: DistortionOption = None,
    hand_size: HandSizeOption = None,
    meshes: Annotated[bool, typer.Option("--meshes", help="Write meshes as .ply.")] = False,
    max_frames: MaxFramesOption = None,
    topic: TopicOption = None,
    independent: Annotated[
        bool, typer.Option("--independent", help="The images of a folder are unrelated.")
    ] = False,
    no_overlay: Annotated[bool, typer.Option("--no-overlay", help="Draw nothing.")] = False,
) -> None:
    """Find the hands in SOURCE; write overlays, a JSON a frame, arrays and meshes to a folder."""
    from hand_perception.results import ResultWriter
    from hand_perception.sources import ASSUMED_HFOV_DEG, open_source

    skipped: list[str] = []

    def skip(error: HandPerceptionError) -> None:
        skipped.append(str(error))
        _say(f"left out: {error}")

    frames = open_source(source, topic=topic, skip=skip)
    camera_of = camera_rule(intrinsics, hfov, camera_yaml, distortion)
    perception = load_perception(method, device, hand_size)
    faces = {side: perception.hand_model(side).faces.cpu().numpy() for side in SIDES}
    assumed_any = False
    started = perf_counter()
    with ResultWriter(out, frames, faces, overlay=not no_overlay, meshes=meshes) as writer:
        with _progress(frames, max_frames) as items:
            for frame in items:
                camera, assumed = camera_of(frame)
                if assumed and not assumed_any:
                    _say(
                        f"no intrinsics given: assuming a {ASSUMED_HFOV_DEG:.0f} degree horizontal "
                        "field of view, which scales distances (see --intrinsics, --hfov)"
                    )
                assumed_any |= assumed
                if independent:
                    perception.reset()
                scene = perception.process(frame.image_rgb, camera, frame.stamp_s)
                writer.add(frame, camera, scene, intrinsics_assumed=assumed)
    if writer.frames == 0:
        raise HandPerceptionError(f"{source} gave no frame that could be read")
    elapsed = perf_counter() - started
    left_out = f", {len(skipped)} left out" if skipped else ""
    print(
        f"{writer.frames} frames{left_out}, {writer.hands} hands, "
        f"{writer.frames / elapsed:.1f} frames/s with everything; results in {out}"
    )


@app.command()
def benchmark(
    source: SourceArg,
    method: MethodOption = None,
    device: DeviceOption = "auto",
    max_frames: Annotated[int, typer.Option(min=1, help="Frames to time.")] = 200,
    warm_up: Annotated[int, typer.Option(min=0, help="Frames before them.")] = 10,
    hfov: HfovOption = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Cost of a window of seven frames over one.")
    ] = False,
    mediapipe_python: Annotated[
        Path | None, typer.Option(help="With --streaming: an interpreter that has mediapipe.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON line, which is what it prints anyway.")
    ] = False,
) -> None:
    """Time the pipeline alone on the frames of SOURCE, one JSON line, milliseconds.

    --streaming times windows over frames and, with --mediapipe-python, the pipeline in
    alternation with MediaPipe Hands.
    """
    import numpy as np

    from hand_perception.sources import open_source

    if streaming:
        from hand_perception.evaluation.streaming import benchmark_streaming

        costs = benchmark_streaming(
            open_source(source),
            frames=max_frames,
            method=method or "deformer",
            mediapipe_python=mediapipe_python,
            device=device,
        )
        print(json.dumps(costs))
        return
    if mediapipe_python is not None:
        raise HandPerceptionError("--mediapipe-python belongs to --streaming; give both")
    perception = load_perception(method, device, None)
    camera_of = camera_rule(None, hfov, None, None)
    times_ms, hands = [], 0
    for index, frame in enumerate(islice(open_source(source), warm_up + max_frames)):
        camera, _ = camera_of(frame)
        started = perf_counter()
        scene = perception.process(frame.image_rgb, camera, frame.stamp_s)
        if index >= warm_up:
            times_ms.append(1000 * (perf_counter() - started))
            hands += len(scene.hands)
    if not times_ms:
        raise HandPerceptionError(
            f"{source} ended within the {warm_up} frames of warm-up; lower --warm-up"
        )
    p50, p95 = np.percentile(times_ms, [50, 95])
    result = {
        "frames": len(times_ms),
        "hands_per_frame": hands / len(times_ms),
        "latency_ms_p50": round(float(p50), 2),
        "latency_ms_p95": round(float(p95), 2),
    }
    print(json.dumps(result))


@app.command()
def train(
    config: Annotated[Path, typer.Option(help="A configuration, config/methods/<method>.yaml.")],
    data: Annotated[list[Path], typer.Option(help="Store of frames; may be given repeatedly.")],
    out: Annotated[Path, typer.Option(help="Folder of checkpoint and TensorBoard files.")],
    validate: Annotated[list[Path] | None, typer.Option(help="Store held out.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="Time budget.")] = None,
    export: Annotated[Path | None, typer.Option(help="Write the weights here at the end.")] = None,
) -> None:
    """Train a method, or go on with its checkpoint in the folder."""
    from hand_perception.training import train as training

    checkpoint = training.train(
        training.read_config(config), data, out, validate=validate or [], minutes=minutes
    )
    if export is not None:
        training.export_weights(checkpoint, export)
    print(f"checkpoint in {checkpoint}")


@app.command()
def demo(
    sources: Annotated[
        list[str] | None, typer.Argument(help="Videos, folders or camera:0; else sample clips.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("out/demo"),
    method: MethodOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Play clips to the ROS 2 node over DDS and record what it says; needs ROS 2."""
    try:
        from hand_perception.ros.demo import main as run_demo
    except ImportError as error:
        raise HandPerceptionError(
            f"the demo needs ROS 2 ({error.name} is missing): source a distribution or use "
            "`make demo`; `hand-perception estimate` works without"
        ) from error
    options = ["--out", str(out), "--device", device]
    if method is not None:
        options += ["--method", method]
    raise typer.Exit(run_demo([*(sources or ()), *options]))


@evaluate_app.command()
def figures(
    data: Annotated[Path, typer.Option(help="Folder with videos/ and fixtures/.")],
    out: Annotated[Path, typer.Option(help="Folder for figures.json and figures.md.")],
    methods: Annotated[str, typer.Option(help="Names, separated by commas.")] = "landmark_fit",
    device: DeviceOption = "cpu",
    mediapipe_python: Annotated[
        Path | None, typer.Option(help="An interpreter that has mediapipe, to compare with.")
    ] = None,
    max_frames: MaxFramesOption = None,
) -> None:
    """Detection, jitter, speed on the videos and errors on the annotated images of DATA."""
    from hand_perception.evaluation.figures import run_figures

    run_figures(
        data,
        out,
        methods=[name.strip() for name in methods.split(",")],
        load=lambda name: load_perception(name, device, None),
        mediapipe_python=mediapipe_python,
        max_frames=max_frames,
    )
    print(f"figures in {out / 'figures.md'} and {out / 'figures.json'}")


def load_perception(method: str | None, device: str, hand_size_m: float | None) -> HandPerception:
    """The pipeline of a method, the package's default when None."""
    from hand_perception.pipeline import HandPerception

    options: dict[str, Any] = {} if method is None else {"method": method}
    return HandPerception.load(device=device, hand_size_m=hand_size_m, **options)


def camera_rule(
    intrinsics: str | None, hfov: float | None, camera_yaml: Path | None, distortion: str | None
) -> Callable[[Frame], tuple[Camera, bool]]:
    """How a frame comes to its camera: what the user says, what a bag says, or an assumption.

    The result says for a frame its camera and whether that was assumed.
    """
    from hand_perception.sources import ASSUMED_HFOV_DEG, camera_of_hfov

    if sum(option is not None for option in (intrinsics, hfov, camera_yaml)) > 1:
        raise HandPerceptionError("give only one of --intrinsics, --hfov and --camera-yaml")
    if camera_yaml is not None and distortion is not None:
        raise HandPerceptionError("--camera-yaml brings its own distortion; leave out --distortion")
    if hfov is not None and not 0 < hfov < 180:
        raise HandPerceptionError(f"--hfov is {hfov}; it must lie between 0 and 180 degrees")
    if distortion is not None and intrinsics is None:
        raise HandPerceptionError("--distortion belongs to --intrinsics; give both")
    coefficients = () if distortion is None else _numbers(distortion, "--distortion")
    if intrinsics is not None:
        values = _numbers(intrinsics, "--intrinsics")
        if len(values) != 4:
            raise HandPerceptionError(
                f"--intrinsics has {len(values)} numbers; it takes four: fx,fy,cx,cy"
            )
        fx, fy, cx, cy = values
        Camera(1, 1, fx, fy, cx, cy, coefficients)  # Says at once what is wrong with them.
    fixed = None if camera_yaml is None else read_camera_yaml(camera_yaml)

    def camera_of(frame: Frame) -> tuple[Camera, bool]:
        height, width = frame.image_rgb.shape[:2]
        if fixed is not None:
            return fixed, False
        if intrinsics is not None:
            return Camera(width, height, fx, fy, cx, cy, coefficients), False
        if hfov is None and frame.camera is not None:
            return frame.camera, False
        return camera_of_hfov(width, height, hfov or ASSUMED_HFOV_DEG), hfov is None

    return camera_of


def read_camera_yaml(path: Path) -> Camera:
    """The camera of a calibration file as ROS camera_calibration and camera_info_manager write.

    Raises HandPerceptionError when it is missing, no such file, or of another distortion model.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
        K = content["camera_matrix"]["data"]
        model = content.get("distortion_model", "plumb_bob")
        if model not in ("plumb_bob", "rational_polynomial"):
            raise HandPerceptionError(
                f"{path} has the distortion model {model!r}; "
                "plumb_bob and rational_polynomial are known"
            )
        coefficients = tuple(float(c) for c in content["distortion_coefficients"]["data"])
        size = int(content["image_width"]), int(content["image_height"])
        return Camera(*size, float(K[0]), float(K[4]), float(K[2]), float(K[5]), coefficients)
    except OSError as error:
        raise HandPerceptionError(f"{path} cannot be read: {error.strerror}") from error
    except HandPerceptionError:
        raise
    except (
        yaml.YAMLError,
        UnicodeDecodeError,
        KeyError,
        TypeError,
        IndexError,
        ValueError,
    ) as error:
        raise HandPerceptionError(
            f"{path} is no camera calibration; it needs image_width, image_height, "
            "camera_matrix.data and distortion_coefficients.data"
        ) from error


def _numbers(text: str, name: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise HandPerceptionError(
            f"{name} is {text!r}; it takes numbers with commas between"
        ) from error


@contextmanager
def _progress(source: Source, max_frames: int | None) -> Iterator[Iterator[Frame]]:
    """The frames under a progress bar on stderr; Ctrl-C ends them, not the command."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    total = source.count
    if max_frames is not None:
        total = max_frames if total is None else min(total, max_frames)
    columns = (TextColumn(source.name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        try:
            yield iter(progress.track(islice(source, max_frames), total=total))
        except KeyboardInterrupt:
            _say("interrupted; what is done is kept")


def _say(text: str) -> None:
    print(f"hand-perception: {text}", file=sys.stderr)


def main() -> None:
    """The entry point: errors become one line on stderr and exit code 2."""
    try:
        app()
    except HandPerceptionError as error:
        _say(str(error))
        sys.exit(2)
    except OSError as error:
        _say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        sys.exit(2)


if __name__ == "__main__":
    main()
