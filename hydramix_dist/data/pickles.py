"""Reading the python version of CIFAR: an unpickler that can build arrays of numbers and nothing else.

A pickle is a program. This reader knows five names, and gives each of them a harmless class or function of its own:
not even NumPy's reconstruction is called, whose array state can be forged.
"""

import io
import pickle
import pickletools
from typing import Any

import numpy as np

from hydramix_dist.errors import UserError

_DTYPES = {
    "u1": np.uint8,
    "i1": np.int8,
    "i2": np.int16,
    "i4": np.int32,
    "i8": np.int64,
    "f4": np.float32,
    "f8": np.float64,
}


class _Dtype:
    """Stands for numpy.dtype: remembers the type's code."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in (">", b">"):
            raise pickle.UnpicklingError("big-endian numbers")


class _Array:
    """Stands for numpy.ndarray: takes its state (version, shape, type, order, bytes) and checks it."""

    value: "np.ndarray[Any, Any] | None" = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> "np.ndarray[Any, Any]":
    if not isinstance(dtype, _Dtype) or dtype.code not in _DTYPES:
        raise pickle.UnpicklingError("an array of something else than numbers")
    if not isinstance(data, bytes | bytearray):  # of a number, bytes() would make that many
        raise pickle.UnpicklingError("an array whose content is no bytes")
    return np.frombuffer(bytes(data), _DTYPES[dtype.code]).reshape(
        tuple(shape), order="F" if order in ("F", b"F") else "C"
    )


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.value = _array(data, dtype, shape, order)
    return array


def _latin1(text: str, *_: object) -> bytes:
    return text.encode("latin-1")


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
}
for _package in ("numpy.core", "numpy._core"):
    _NAMES[f"{_package}.multiarray", "_reconstruct"] = _reconstruct
    _NAMES[f"{_package}.numeric", "_frombuffer"] = _from_buffer


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NAMES:
            return _NAMES[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def load_arrays(data: bytes, name: str) -> dict[str, Any]:
    """Return the dictionary in a pickle, keys as text, arrays as NumPy arrays of numbers.

    Raises UserError, naming the file `name`, where the pickle is broken or asks for anything but such arrays.
    """
    try:
        _check_memo(data)
        tree = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise UserError(f"{name} is refused: only arrays of numbers may be in it ({error})") from error
    except Exception as error:  # hostile pickles fail in many ways; none of them gets further than this
        raise UserError(f"{name} is no readable pickle of arrays ({type(error).__name__}: {error})") from error
    if not isinstance(tree, dict):
        raise UserError(f"{name} holds {type(tree).__name__}, a dictionary of arrays is needed")
    return {_text(key): value.value if isinstance(value, _Array) else value for key, value in tree.items()}


def _check_memo(data: bytes) -> None:
    """Refuse memo numbers beyond the pickle's length: the reader would reserve memory for all below them."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(str(argument)) > len(data):
            raise pickle.UnpicklingError("a memo number beyond its length")


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def text_list(values: Any, name: str) -> list[str]:
    """Return a pickled list of names as text. Raises UserError, naming the file `name`, where it is none."""
    if not isinstance(values, list | tuple) or not all(isinstance(value, bytes | str) for value in values):
        raise UserError(f"{name} is damaged: its class names are no list of text")
    return [_text(value) for value in values]
