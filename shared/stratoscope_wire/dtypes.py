"""Value types of activation columns: their Arrow and NumPy forms, and the test for non-finite values.

bfloat16 has no Arrow and no NumPy type, so its 16 bits travel as uint16 under a schema that says so.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stratoscope_wire.request import Dtype

Values = npt.NDArray[Any]

ARROW_TYPES: Final[dict[Dtype, pa.DataType]] = {
    "float32": pa.float32(),
    "bfloat16": pa.uint16(),
    "float16": pa.float16(),
}
NUMPY_TYPES: Final[dict[Dtype, type[np.generic]]] = {
    "float32": np.float32,
    "bfloat16": np.uint16,
    "float16": np.float16,
}

_BF16_EXPONENT: Final = np.uint16(0x7F80)


def value_bytes(dtype: Dtype) -> int:
    """Return the size of one value in bytes."""
    return np.dtype(NUMPY_TYPES[dtype]).itemsize


def is_finite(values: Values, dtype: Dtype) -> bool:
    """Tell whether no value is infinite or not a number."""
    if dtype == "bfloat16":
        return not bool(((values & _BF16_EXPONENT) == _BF16_EXPONENT).any())
    return bool(np.isfinite(values).all())


def to_float32(values: Values, dtype: Dtype) -> npt.NDArray[np.float32]:
    """Widen values to float32, exactly.

    Parameters
    ----------
    values : array of any shape
        As they came from the wire; for bfloat16 the raw bits in uint16.
    """
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32, copy=False)


def widen(values: Values, dtype: Dtype, out: npt.NDArray[np.float32]) -> None:
    """Widen values to float32, exactly, into memory that is there.

    Parameters
    ----------
    values : array of any shape
        As they came from the wire; for bfloat16 the raw bits in uint16.
    out : array of the same shape
        Takes them.
    """
    if dtype == "bfloat16":
        np.left_shift(values, 16, out=out.view(np.uint32), dtype=np.uint32)
    else:
        np.copyto(out, values)
