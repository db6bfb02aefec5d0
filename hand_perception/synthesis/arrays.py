"""Names for the arrays that pass between the modules of synthesis.

Loosely typed: OpenCV's and numba's results have no dtype that a type checker could see.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

F32 = NDArray[Any]
"""float32."""
I32 = NDArray[Any]
"""int32."""
U8 = NDArray[Any]
"""uint8."""
