"""Convert MediaPipe's palm and hand landmark networks to this project's safetensors weights.

    pip download --no-deps mediapipe==0.10.14          # any platform's wheel will do
    pip install tflite                                 # the schema package, needed only here
    python tools/convert_mediapipe.py mediapipe-0.10.14-*.whl

writes models/palm/palm_detection.safetensors and models/landmarks/hand_landmark.safetensors.
The layers are taken in the order of the graph and must fit the modules of
hand_perception/networks/layers.py one by one. The original stores its weights as fp16, so fp16
files lose nothing (checked).

    python tools/convert_mediapipe.py mediapipe-0.10.14-*.whl --references ../shared/data

also writes test/data/mediapipe_*.npz: what the original answers for a generated picture and
for real photos, by its own interpreter (needs `pip install ai-edge-litert` as well).
"""

from __future__ import annotations

import argparse
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tflite
import torch
from safetensors.torch import save_file
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

from reference_pictures import PHOTOS, reference_picture

from hand_perception.networks.layers import CROP_SIZE, PALM_SIZE, LandmarkNetwork, PalmNetwork

NETWORKS = {
    "palm": (
        PalmNetwork,
        "mediapipe/modules/palm_detection/palm_detection_full.tflite",
        "models/palm/palm_detection.safetensors",
    ),
    "landmarks": (
        LandmarkNetwork,
        "mediapipe/modules/hand_landmark/hand_landmark_full.tflite",
        "models/landmarks/hand_landmark.safetensors",
    ),
}
OPERATORS = {value: name for name, value in vars(tflite.BuiltinOperator).items() if name.isupper()}
DTYPES = {tflite.TensorType.FLOAT32: np.float32, tflite.TensorType.FLOAT16: np.float16}
# TensorFlow's weight layouts -> torch's (out, in / groups, height, width).
LAYOUTS = {"CONV_2D": (0, 3, 1, 2), "DEPTHWISE_CONV_2D": (3, 0, 1, 2), "FULLY_CONNECTED": (0, 1)}


def layers(data: bytes) -> Iterator[list[np.ndarray]]:
    """The constant arrays of every layer that has some, torch layout, in the graph's order."""
    model = tflite.Model.GetRootAsModel(data, 0)
    graph = model.Subgraphs(0)
    constants: dict[int, np.ndarray] = {}
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        buffer = model.Buffers(tensor.Buffer())
        if buffer.DataLength() and tensor.Type() in DTYPES:
            values = np.frombuffer(buffer.DataAsNumpy().tobytes(), DTYPES[tensor.Type()])
            constants[index] = values.reshape(tensor.ShapeAsNumpy())
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = model.OperatorCodes(operator.OpcodeIndex())
        name = OPERATORS[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        inputs = [int(i) for i in operator.InputsAsNumpy()]
        if name == "DEQUANTIZE":
            constants[operator.Outputs(0)] = constants[inputs[0]]
        elif name == "PRELU":
            yield [constants[inputs[1]].reshape(-1)]
        elif name in LAYOUTS:
            yield [constants[inputs[1]].transpose(LAYOUTS[name]), constants[inputs[2]]]


def convert(network: nn.Module, data: bytes) -> dict[str, torch.Tensor]:
    """The fp16 weights of a network, by the names of its modules."""
    leaves = [
        (n, m)
        for n, m in network.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear | nn.PReLU)
    ]
    weights: dict[str, torch.Tensor] = {}
    for (name, leaf), arrays in zip(leaves, layers(data), strict=True):
        parameters = dict(leaf.named_parameters())
        if len(arrays) == 2 and "bias" not in parameters:
            if np.any(arrays[1]):
                raise SystemExit(f"{name}: the original has a bias, the module has none")
            arrays = arrays[:1]
        for (key, parameter), array in zip(parameters.items(), arrays, strict=True):
            if tuple(parameter.shape) != array.shape:
                raise SystemExit(
                    f"{name}.{key}: {array.shape} in the file, {tuple(parameter.shape)} here"
                )
            half = array.astype(np.float16)
            if not np.array_equal(half.astype(np.float32), array.astype(np.float32)):
                raise SystemExit(f"{name}.{key} does not fit fp16 without loss")
            weights[f"{name}.{key}"] = torch.from_numpy(np.ascontiguousarray(half))
    return weights


def reference(data: bytes, picture: np.ndarray) -> dict[str, np.ndarray]:
    """What the original answers for a picture (S, S, 3) uint8, by ai-edge-litert."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    tensor = interpreter.get_input_details()[0]
    interpreter.set_tensor(tensor["index"], picture[None].astype(np.float32) / 255)
    interpreter.invoke()
    outputs = interpreter.get_output_details()
    return {output["name"]: interpreter.get_tensor(output["index"])[0] for output in outputs}


def write_references(archive: zipfile.ZipFile, data: Path) -> None:
    """test/data/mediapipe_<picture>.npz for the generated picture and the photos.

    Of the palm network's 2016 anchors every fifth is kept. The pictures themselves stay out:
    their checksums tell whether a reader has the same pixels.
    """
    palm = archive.read(NETWORKS["palm"][1])
    landmarks = archive.read(NETWORKS["landmarks"][1])
    for name in ("generated", *PHOTOS):
        small, large = (reference_picture(name, size, data) for size in (PALM_SIZE, CROP_SIZE))
        found, hand = reference(palm, small), reference(landmarks, large)
        target = ROOT / f"test/data/mediapipe_{name}.npz"
        target.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            target,
            checksums=np.array([zlib.crc32(small.tobytes()), zlib.crc32(large.tobytes())]),
            geometry=found["Identity"][::5],
            logits=found["Identity_1"][::5, 0],
            screen=hand["Identity"].reshape(21, 3),
            presence=hand["Identity_1"][0],
            handedness=hand["Identity_2"][0],
            world=hand["Identity_3"].reshape(21, 3),
        )
        print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("wheel", type=Path, help="the mediapipe 0.10.14 wheel")
    parser.add_argument(
        "--references", type=Path, metavar="DATA", help="also write test references; photos in DATA"
    )
    args = parser.parse_args()
    with zipfile.ZipFile(args.wheel) as archive:
        for network, source, target in NETWORKS.values():
            weights = convert(network(), archive.read(source))
            path = ROOT / target
            path.parent.mkdir(parents=True, exist_ok=True)
            metadata = {"source": f"mediapipe 0.10.14, {source}, Apache-2.0"}
            save_file(weights, path, metadata=metadata)
            print(f"{target}: {len(weights)} tensors, {path.stat().st_size / 1e6:.1f} MB")
        if args.references is not None:
            write_references(archive, args.references)


if __name__ == "__main__":
    main()
