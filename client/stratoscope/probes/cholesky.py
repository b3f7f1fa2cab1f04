"""Cholesky factors by LAPACK while other threads go on.

SciPy's Python wrappers of these routines hold the interpreter's lock, so that columns fitted side by side would wait
for each other, and NumPy cannot solve with a factor. The routines are called here at the addresses that SciPy gives to
compiled code (`scipy.linalg.cython_lapack`).
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cython_lapack

Floats = NDArray[np.float64]

_LOWER: Final = b"U"  # the lower triangle of an array is the upper one of the matrix that LAPACK sees in it
_KINDS: Final[dict[str, Any]] = {"char *": ctypes.c_char_p, "int *": ctypes.POINTER(ctypes.c_int)}


def factorise(K: Floats) -> bool:
    """Put Cholesky's factor L of a symmetric matrix, K = L L', in place of its lower triangle (LAPACK's ``dpotrf``).

    Parameters
    ----------
    K : contiguous float64 array of shape (n, n)
        Only the lower triangle is read; the upper one is left as it is.

    Returns
    -------
    bool
        False if K is not positive definite; its lower triangle then holds nothing of use.
    """
    return _call("dpotrf", _LOWER, len(K), K, len(K))


def invert(factor: Floats) -> bool:
    """Put the inverse of K in place of its factor, both triangles (LAPACK's ``dpotri``).

    Parameters
    ----------
    factor : contiguous float64 array of shape (n, n)
        As `factorise` leaves it.

    Returns
    -------
    bool
        False if K is singular.
    """
    if not _call("dpotri", _LOWER, len(factor), factor, len(factor)):
        return False
    np.copyto(factor, factor.T, where=~np.tri(len(factor), dtype=np.bool_))
    return True


def solve(factor: Floats, values: Floats) -> None:
    """Put the solutions x of K x = v in place of each v (LAPACK's ``dpotrs``).

    Parameters
    ----------
    factor : contiguous float64 array of shape (n, n)
        As `factorise` leaves it.
    values : contiguous float64 array of shape (n_vectors, n)
    """
    _call("dpotrs", _LOWER, len(factor), len(values), factor, len(factor), values, len(factor))


def _call(name: str, *arguments: Any) -> bool:
    """Call a routine of LAPACK; return whether it came to its end."""
    info = ctypes.c_int()
    _routine(name)(*(ctypes.c_int(one) if isinstance(one, int) else one for one in arguments), info)
    if info.value < 0:
        raise ValueError(f"{name}: argument {-info.value} is not valid")
    return info.value == 0


@cache
def _routine(name: str) -> Any:
    """Find a routine, with arguments of the kinds that SciPy declares."""
    name_of, address_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    address_of.restype, address_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    capsule = cython_lapack.__pyx_capi__[name]
    declared = name_of(capsule)
    kinds = declared.decode().removeprefix("void (").removesuffix(")").split(", ")
    matrix: Any = np.ctypeslib.ndpointer(np.float64, flags=("C_CONTIGUOUS", "WRITEABLE"))
    taken = [matrix if kind.endswith("_d *") else _KINDS[kind] for kind in kinds]
    return ctypes.CFUNCTYPE(None, *taken)(address_of(capsule, declared))
