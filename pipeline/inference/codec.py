"""msgpack with NumPy arrays, exactly as openpi-client packs them, and safe to unpack from anybody.

An array is {b"__ndarray__": True, b"data": bytes, b"dtype": dtype.str, b"shape": shape}, a NumPy scalar
{b"__npgeneric__": True, b"data": value, b"dtype": dtype.str}: these keys are bytes, all others str. Nothing is
unpickled. What a message unpacks to is bounded by its own size: containers are counted, for an empty one takes one byte
on the wire and 64 in memory.

Layout: Physical-Intelligence/openpi, openpi-client/msgpack_numpy.py.
"""

import math
from typing import Any

import msgpack
import numpy as np

NUMBERS = "biuf"  # kinds of dtypes
REFUSED_KINDS = "VOc"  # structures, objects, complex numbers, as there
MAX_ITEMS = 4096  # of all lists and dicts of a message: an observation has some tens
MAX_TEXT = 1 << 16
MAX_DIMS = 8


class MessageError(ValueError):
    """A message that is not what the protocol asks for. The text says what was found, and what is wanted."""


def pack(tree: Any) -> bytes:
    """Return the message of nested dicts and lists of plain values and arrays.

    Raises:
        MessageError: an array of a kind that the protocol does not carry, or something else that it does not.
    """
    try:
        return msgpack.packb(tree, default=_to_wire)
    except (TypeError, ValueError, OverflowError) as error:
        raise MessageError(f"cannot be sent: {error}") from None


def unpack(message: bytes) -> Any:
    """Return what was packed; arrays are read-only views.

    Raises:
        MessageError: not msgpack, too deep or too many items, or an array whose dtype, shape and data do not agree.
    """
    counted = 0

    def count(n: int) -> None:
        nonlocal counted
        counted += 1 + n
        if counted > MAX_ITEMS:
            raise MessageError(f"more than {MAX_ITEMS} items; send images and states as NumPy arrays, not as lists")

    def on_list(items: list) -> list:
        count(len(items))
        return items

    def on_dict(items: dict) -> Any:
        count(len(items))
        return _from_wire(items)

    try:
        return msgpack.unpackb(
            message,
            object_hook=on_dict,
            list_hook=on_list,
            ext_hook=_refuse_extension,
            max_str_len=MAX_TEXT,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
        )
    except MessageError:
        raise
    except (ValueError, TypeError, RecursionError) as error:  # all of msgpack's are ValueErrors
        raise MessageError(
            f"not msgpack as openpi-client packs it ({type(error).__name__}: {str(error)[:200]})"
        ) from None


def _to_wire(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in REFUSED_KINDS:
        raise ValueError(f"dtype {value.dtype} is not carried")
    if isinstance(value, np.ndarray):
        data = value.tobytes()
        return {b"__ndarray__": True, b"data": data, b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"{type(value).__name__} is not carried")


def _from_wire(items: dict) -> Any:
    if b"__ndarray__" in items:
        return _array(items)
    if b"__npgeneric__" in items:
        return _scalar(_dtype(items.get(b"dtype")), items.get(b"data"))
    return items


def _scalar(dtype: np.dtype, data: Any) -> np.generic:
    """Return a NumPy scalar. Of numbers and text alone: bytes made of a number would be as many as it says."""
    fits = isinstance(data, str) if dtype.kind == "U" else dtype.kind in NUMBERS and type(data) in (bool, int, float)
    if not fits:
        raise MessageError(f"a scalar of dtype {dtype.str} whose data is {type(data).__name__}")
    try:
        with np.errstate(over="ignore"):  # a float16 of 1e6 is infinite, as a NumPy scalar would be
            return dtype.type(data)
    except (TypeError, ValueError, OverflowError) as error:
        raise MessageError(f"a scalar that is none: {error}") from None


def _array(items: dict) -> np.ndarray:
    dtype, shape, data = _dtype(items.get(b"dtype")), items.get(b"shape"), items.get(b"data")
    if not isinstance(data, bytes):
        raise MessageError(f"an array whose data is {type(data).__name__}, not bytes")
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or any(type(n) is not int or n < 0 for n in shape):
        raise MessageError(f"an array whose shape is {str(shape)[:100]}, not a list of up to {MAX_DIMS} sizes")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise MessageError(f"an array of shape {shape} and dtype {dtype.str} that comes with {len(data)} bytes")
    try:
        return np.ndarray(shape, dtype, buffer=data)
    except (ValueError, TypeError) as error:  # sizes past the address space, beside one of 0
        raise MessageError(f"an array of shape {shape}: {error}") from None


def _dtype(name: Any) -> np.dtype:
    if not isinstance(name, str) or not 2 <= len(name) <= 24:
        raise MessageError(f"an array whose dtype is {str(name)[:50]!r}, not a text such as '|u1' or '<f8'")
    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError, SyntaxError) as error:
        raise MessageError(f"dtype {name!r}: {error}") from None
    if dtype.kind in REFUSED_KINDS or dtype.itemsize == 0:
        raise MessageError(f"dtype {name!r} is not carried: send numbers")
    return dtype


def _refuse_extension(code: int, data: bytes) -> None:
    raise MessageError(f"a msgpack extension of type {code}, which openpi-client never sends")
