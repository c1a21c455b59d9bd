"""msgpack as openpi packs it: the bytes themselves, and nothing that a stranger's bytes could do."""

import tracemalloc

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, integer_dtypes

from pipeline.inference.codec import MessageError, pack, unpack


def test_an_array_is_packed_as_documented() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert msgpack.unpackb(pack({"x": array, "y": np.int16(-3)})) == {
        "x": {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": "<f4", b"shape": [2, 3]},
        "y": {b"__npgeneric__": True, b"data": -3, b"dtype": "<i2"},
    }


@given(arrays(st.one_of(integer_dtypes(), st.sampled_from(["f2", ">f4", "f8", "?"])), array_shapes(min_side=0)))
@settings(max_examples=100, deadline=None)
def test_arrays_come_back_as_they_were(array: np.ndarray) -> None:
    back = unpack(pack([array, array.T]))
    for x, y in zip(back, (array, array.T), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        np.testing.assert_array_equal(x, y)
        assert not x.flags.writeable


@pytest.mark.parametrize("array", [np.array([1j]), np.array([None]), np.zeros(1, "i4,i4"), np.complex64(1)])
def test_kinds_that_are_not_carried_are_refused(array: np.ndarray) -> None:
    with pytest.raises(MessageError, match="not carried"):
        pack({"x": array})


def packed(data: object, dtype: object, shape: object) -> bytes:
    return msgpack.packb({b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape})


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"", "incomplete input"),
        (b"\xc1", "not msgpack"),
        (b"\x00\x00", "extra data"),
        (b"\x91" * 5000, "StackError"),
        (b"\xdd\xff\xff\xff\xff", "exceeds max_array_len"),
        (b"\xdf\xff\xff\xff\xff", "exceeds max_map_len"),
        (b"\x9f" + b"\xdc\x01\x00" * 15 + b"\x90" * 4000, "more than|not msgpack"),
        (msgpack.packb([[]] * 4095), "more than 4096 items"),
        (msgpack.packb(msgpack.ExtType(5, b"x")), "extension of type 5"),
        (msgpack.packb({1: 2}), "not allowed for map key|not msgpack"),
        (packed(b"12345678", "|O", [1]), "not carried"),
        (packed(b"12345678", "<c8", [1]), "not carried"),
        (packed(b"12345678", "V8", [1]), "not carried"),
        (packed(b"12345678", "i4,i4", [1]), "not carried"),
        (packed(b"12345678", "nothing", [1]), "dtype 'nothing'"),
        (packed(b"12345678", 5, [1]), "dtype is '5'"),
        (packed(b"12345678", "<f8", [2]), r"shape \[2\] and dtype <f8 that comes with 8 bytes"),
        (packed(b"12345678", "|u1", [7]), r"comes with 8 bytes"),
        (packed(b"12345678", "<f8", [-1]), "not a list of up to 8 sizes"),
        (packed(b"12345678", "<f8", [True]), "not a list of up to 8 sizes"),
        (packed(b"12345678", "<f8", 1), "not a list of up to 8 sizes"),
        (packed(b"", "<f8", [0] * 9), "not a list of up to 8 sizes"),
        (packed(b"", "<f8", [0, 2**62, 2**62]), "an array of shape"),
        (packed("12345678", "<f8", [1]), "data is str, not bytes"),
        (msgpack.packb({b"__ndarray__": True}), "dtype is 'None'"),
        (
            msgpack.packb({b"__npgeneric__": True, b"data": "x", b"dtype": "<f8"}),
            "a scalar of dtype <f8 whose data is str",
        ),
        (
            msgpack.packb({b"__npgeneric__": True, b"data": 10**12, b"dtype": "|S1"}),
            r"a scalar of dtype \|S1 whose data is int",
        ),
        (msgpack.packb({b"__npgeneric__": True, b"data": 2**60, b"dtype": "<i2"}), "a scalar that is none"),
    ],
)
def test_what_is_no_message_is_told(message: bytes, said: str) -> None:
    with pytest.raises(MessageError, match=said):
        unpack(message)


def test_a_message_takes_no_more_memory_than_its_size_and_a_bit() -> None:
    hostile = [
        b"\xdc\xff\xff" + b"\x90" * 65535,
        b"\xdd\x00\x10\x00\x00" + b"\x80" * (1 << 20),
        (b"\xdc\x0f\xff" + b"\x00" * 4094) * 200,
        b"\xdc\x0f\xff" * 1000,
    ]
    tracemalloc.start()
    for message in hostile:
        with pytest.raises(MessageError):
            unpack(message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 << 20


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_tree_or_told_to_be_none(message: bytes) -> None:
    try:
        unpack(message)
    except MessageError as error:
        assert str(error)
