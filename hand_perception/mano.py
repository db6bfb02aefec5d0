"""Reading MANO model files (https://mano.is.tue.mpg.de) without running anything in them.

MANO_RIGHT.pkl and MANO_LEFT.pkl are Python 2 pickles that hold chumpy and scipy objects. Only
plain data is taken from them: every class outside a short list is refused, and the objects of
that list become inert containers. Arrays of the same names in a .npz or .safetensors work too.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from hand_perception.skeleton import MANO_PARENTS
from hand_perception.types import SIDES, HandPerceptionError, Side

Arrays = dict[str, NDArray[Any]]

TIP_VERTICES: Mapping[str, Mapping[Side, tuple[int, ...]]] = {
    "manopth": {"right": (745, 317, 444, 556, 673), "left": (745, 317, 445, 556, 673)},
    "smplx": {"right": (745, 320, 444, 555, 672), "left": (745, 320, 444, 555, 672)},
    "ho3d": {"right": (744, 333, 444, 555, 672), "left": (744, 333, 444, 555, 672)},
    "deformer": {"right": (728, 353, 442, 576, 694), "left": (728, 353, 442, 576, 694)},
    "freihand": {"right": (744, 320, 443, 555, 672), "left": (744, 320, 443, 555, 672)},
}
"""MANO has no tip joints: which vertex stands for each tip, thumb to little finger. manopth's is
also DexYCB's, smplx's is Keypoint Transformer's; they differ by up to a centimetre."""

MANO_VERTICES = 778
_SUFFIXES = (".pkl", ".npz", ".safetensors")
_FOLDERS = (".", "models", "mano", "mano/models", "mano_v1_2/models")


def find_model_file(path: Path, side: Side) -> Path:
    """The file itself, or the model file of that side in a folder, or else of the other side.

    Raises HandPerceptionError when there is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise HandPerceptionError(f"there is no hand model at {path}")
    for candidate in (side, *SIDES):
        for folder in _FOLDERS:
            for suffix in _SUFFIXES:
                file = path / folder / f"MANO_{candidate.upper()}{suffix}"
                if file.is_file():
                    return file
    raise HandPerceptionError(
        f"the folder {path} holds no MANO model; it must hold MANO_RIGHT.pkl or MANO_LEFT.pkl "
        "(.npz and .safetensors are allowed too)"
    )


def side_of_file(path: Path) -> Side:
    """The hand that a model file holds: left when its name says so, else right."""
    return "left" if "left" in path.stem.lower() else "right"


def read_arrays(path: Path) -> Arrays:
    """The arrays in a .pkl, .npz or .safetensors file, by name; other entries are left out.

    Raises HandPerceptionError for a file that is damaged, of another kind, or whose pickle asks
    for anything but plain data.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return dict(archive)
        if path.suffix != ".pkl":
            raise HandPerceptionError(
                f"{path} is no hand model; allowed are .pkl, .npz and .safetensors files"
            )
        content = _DataUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except HandPerceptionError as error:
        raise HandPerceptionError(f"{path}: {error}") from None
    except _DAMAGED as error:
        raise HandPerceptionError(f"{path} is damaged or no hand model: {error}") from error
    if not isinstance(content, dict):
        raise HandPerceptionError(f"{path} holds a {type(content).__name__}, not MANO's dictionary")
    try:
        found = {str(name): _as_array(value) for name, value in content.items()}
    except _DAMAGED as error:
        raise HandPerceptionError(f"{path} holds an array that is damaged: {error}") from error
    return {name: array for name, array in found.items() if array is not None}


def mano_arrays(path: Path, arrays: Arrays, tips: str = "manopth") -> Arrays:
    """The fields of a HandModel from the arrays of a MANO file, float64 and int64.

    `tips` names one of `TIP_VERTICES`. The joints become linear in the betas: J = R (T + S beta)
    with MANO's regressor R. Raises HandPerceptionError for missing arrays or wrong shapes.
    """
    if tips not in TIP_VERTICES:
        raise HandPerceptionError(f"tips is {tips!r}; allowed are {', '.join(TIP_VERTICES)}")
    needed = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "f", "hands_mean")
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise HandPerceptionError(f"{path} is no MANO model: it lacks {', '.join(missing)}")
    v = MANO_VERTICES
    shapes = dict(zip(needed, ((v, 3), (v, 3, 10), (v, 3, 135), (16, v), (v, 16), None, (45,))))
    for name, allowed in shapes.items():
        if allowed is not None and arrays[name].shape != allowed:
            raise HandPerceptionError(
                f"{path}: {name} has shape {arrays[name].shape}; MANO's is {allowed}"
            )
        if arrays[name].dtype.kind not in "fiu" or not np.isfinite(arrays[name]).all():
            raise HandPerceptionError(f"{path}: {name} must hold finite numbers")
    faces = arrays["f"].astype(np.int64)
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.min() < 0 or faces.max() >= v:
        raise HandPerceptionError(f"{path}: f must hold three vertices, 0-{v - 1}, a face")
    if "kintree_table" in arrays:
        parents = arrays["kintree_table"][0].astype(np.int64)[1:]
        if tuple(parents) != MANO_PARENTS[1:]:
            raise HandPerceptionError(f"{path}: kintree_table has other parents than MANO's")

    side = side_of_file(path)
    template = arrays["v_template"].astype(np.float64)
    shapedirs = arrays["shapedirs"].astype(np.float64)
    if side == "left":
        shapedirs = _left_shapedirs(path, shapedirs)
    regressor = arrays["J_regressor"].astype(np.float64)
    tip_vertices = np.array(TIP_VERTICES[tips][side])
    joints = regressor @ template
    mirror = np.array([-1.0, 1.0, 1.0]) if side == "left" else np.ones(3)
    axes = skeleton_axes(joints * mirror, template[tip_vertices] * mirror)
    if side == "left":
        axes = axes * -mirror
    return {
        "v_template": template,
        "shapedirs": shapedirs,
        "J_template": joints,
        "J_shapedirs": np.einsum("jv,vcb->jcb", regressor, shapedirs),
        "weights": arrays["weights"].astype(np.float64),
        "faces": faces,
        "tips": tip_vertices,
        "axes": axes,
        "posedirs": arrays["posedirs"].astype(np.float64),
        "hands_mean": arrays["hands_mean"].astype(np.float64).reshape(15, 3),
    }


def skeleton_axes(joints: NDArray[Any], tips: NDArray[Any]) -> NDArray[Any]:
    """Axes (16, 3, 3) of a right hand (`HandModel.axes`) from its rest skeleton alone.

    `joints` (16, 3) in MANO's order, `tips` (5, 3) from thumb to little finger. A finger's hinge
    is square to its bone and to the palm. The thumb's back faces a fixed direction of the palm's
    frame, the one in which the free model's thumbnail looks.
    """
    to_wrist = _unit(joints[0] - joints[4])
    dorsal = _unit(np.cross(joints[1] - joints[7], to_wrist))
    palm = np.stack([to_wrist, dorsal, np.cross(to_wrist, dorsal)])
    thumb_back = np.array([0.32, 0.30, 0.90]) @ palm
    axes = np.zeros((16, 3, 3))
    axes[0] = np.stack([palm[2], palm[1], -palm[0]])
    tip_of = dict(zip((15, 3, 6, 12, 9), tips))
    for k in range(1, 16):
        bone = _unit((tip_of[k] if k in tip_of else joints[k + 1]) - joints[k])
        flexion = _unit(np.cross(thumb_back if k >= 13 else dorsal, bone))
        # Abduction leaves the middle finger, so it turns the other way for ring and little.
        sign = -1.0 if 7 <= k <= 12 else 1.0
        axes[k] = np.stack([flexion, sign * np.cross(bone, flexion), sign * bone])
    return axes


def _unit(v: NDArray[Any]) -> NDArray[Any]:
    return v / np.linalg.norm(v)


def _left_shapedirs(path: Path, shapedirs: NDArray[Any]) -> NDArray[Any]:
    # The published MANO_LEFT.pkl carries the right hand's x in its shape directions. It shows by
    # comparison with the right hand's file, as smplx's users do it.
    right = path.with_name(path.name.replace("LEFT", "RIGHT").replace("left", "right"))
    if right == path or not right.is_file():
        return shapedirs
    reference = read_arrays(right).get("shapedirs")
    if reference is None or reference.shape != shapedirs.shape:
        return shapedirs
    if np.abs(shapedirs[:, 0] - reference[:, 0]).sum() < 1:
        return shapedirs * np.array([-1.0, 1.0, 1.0])[:, None]
    return shapedirs


class _Inert:
    """Stands in for an object of a foreign class: keeps its state, does nothing."""

    def __init__(self, *_: Any) -> None:
        pass


def _rebuild_inert(cls: type, *_: Any) -> _Inert:
    # Stands in for copyreg._reconstructor.
    if not issubclass(cls, _Inert):
        raise HandPerceptionError(f"its pickle rebuilds a {cls.__name__}; that is not allowed")
    return cls()


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    # Stands in for _codecs.encode, by which Python 3 writes bytes into old pickles.
    if encoding != "latin1":
        raise HandPerceptionError(f"its pickle uses the codec {encoding!r}; that is not allowed")
    return text.encode("latin1")


class _DataUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays; chumpy and scipy objects become inert; all else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        root = module.split(".")[0]
        if root == "chumpy" or module.startswith("scipy.sparse"):
            return type(name, (_Inert,), {})
        if (module, name) in _DATA_GLOBALS:
            return _DATA_GLOBALS[module, name]
        raise HandPerceptionError(
            f"its pickle asks for {module}.{name}, which is not plain data; nothing was run"
        )


# numpy's own functions, wherever this version of numpy keeps them.
_numpy_reconstruct: Any = np.empty(0).__reduce__()[0]
_numpy_scalar: Any = np.float64(0).__reduce__()[0]
_DATA_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode_latin1,
    ("__builtin__", "object"): _Inert,
    ("builtins", "object"): _Inert,
    ("copy_reg", "_reconstructor"): _rebuild_inert,
    ("copyreg", "_reconstructor"): _rebuild_inert,
    ("numpy.core.multiarray", "_reconstruct"): _numpy_reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _numpy_reconstruct,
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,
    ("numpy._core.multiarray", "scalar"): _numpy_scalar,
}

_DAMAGED = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    SafetensorError,
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    SystemError,
    TypeError,
    ValueError,
)
"""What the readers raise for a file that is cut short or scrambled."""


def _as_array(value: Any) -> NDArray[Any] | None:
    # The numbers inside an entry of the pickle's dictionary; None when it holds none.
    if isinstance(value, _Inert):
        state = vars(value)
        if {"data", "indices", "indptr"} <= state.keys():
            return _dense(type(value).__name__, state)
        if "x" in state:
            return _as_array(state["x"])
        if {"a", "idxs", "preferred_shape"} <= state.keys():
            whole = _as_array(state["a"])
            chosen = None if whole is None else whole.ravel()[state["idxs"]]
            return None if chosen is None else chosen.reshape(state["preferred_shape"])
        return None
    return value if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" else None


def _dense(kind: str, state: Mapping[str, Any]) -> NDArray[Any]:
    # A compressed sparse column (or row) matrix, from its state.
    rows, columns = state["_shape"] if "_shape" in state else state["shape"]
    lines = np.repeat(np.arange(len(state["indptr"]) - 1), np.diff(state["indptr"]))
    dense = np.zeros((rows, columns))
    place = (lines, state["indices"]) if kind.startswith("csr") else (state["indices"], lines)
    np.add.at(dense, place, state["data"])
    return dense
