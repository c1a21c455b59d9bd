"""Any message: its sender gets actions or a clear error, the others their actions, and memory stays where it is."""

from collections import Counter
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from pipeline.inference.codec import pack, unpack
from tests.server.serving import ask, client, request, serving_elsewhere

VALID = request(
    0, observation_image=np.zeros((32, 32, 3), np.uint8), observation_wrist_image=np.ones((32, 32, 3), np.uint8)
)
MESSAGE = pack(VALID)
LIMIT = 1 << 20

numbers = st.one_of(st.integers(-(2**63), 2**64 - 1), st.floats(), st.booleans(), st.none())
shapes = st.lists(st.integers(0, 40), max_size=4)
dtypes = st.sampled_from(
    ["|u1", "<f4", "<f8", ">f8", "<i8", "|b1", "<U3", "|S4", "<m8[ns]", "<f2", "|O", "<c8", "V3", "x"]
)
wire_arrays = st.builds(
    lambda shape, dtype, data: {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape},
    st.one_of(shapes, numbers, st.just([2**62, 0])),
    st.one_of(dtypes, numbers, st.text(max_size=8)),
    st.one_of(st.binary(max_size=256), st.text(max_size=8), numbers),
)
wire_scalars = st.builds(
    lambda data, dtype: {b"__npgeneric__": True, b"data": data, b"dtype": dtype},
    st.one_of(numbers, st.text(max_size=8), st.lists(st.integers(), max_size=2)),
    st.one_of(dtypes, st.text(max_size=8)),
)


@st.composite
def sound_arrays(draw: st.DrawFn) -> dict[bytes, Any]:
    """Arrays that unpack, of any shape and dtype, with any content: NaN and infinity, too."""
    shape = draw(st.one_of(shapes, st.sampled_from([[8], [7], [2], [6, 7], [32, 32, 3], [1, 8], [4, 4, 4, 3]])))
    dtype = draw(st.sampled_from(["|u1", "<f4", "<f8", ">f2", "<i8", "|b1", "<U2"]))
    seed = draw(st.binary(min_size=1, max_size=16))
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    data = (seed * (size // len(seed) + 1))[:size]
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


leaves = st.one_of(numbers, st.text(max_size=20), st.binary(max_size=20), wire_arrays, wire_scalars, sound_arrays())
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(st.one_of(st.text(max_size=8), st.binary(max_size=8)), inner, max_size=5),
    ),
    max_leaves=12,
)
changed = st.builds(
    lambda key, value: {**VALID, key: value},
    st.sampled_from([*VALID, "noise", "agentview", "ee_pose", "gripper"]),
    trees,
)


def packed(tree: Any) -> bytes:
    """Return a message; an integer that msgpack has no room for becomes a 0."""
    try:
        return msgpack.packb(tree, default=lambda x: msgpack.unpackb(pack(x)))
    except (OverflowError, ValueError):
        return b"\x00"


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The valid message with bytes changed, cut off, or added."""
    content = bytearray(MESSAGE)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.one_of(st.integers(0, 300), st.integers(0, len(content) - 1)))
        content[at] = draw(st.integers(0, 255))
    end = draw(st.one_of(st.none(), st.integers(0, len(content))))
    return bytes(content[:end]) + draw(st.binary(max_size=4))


messages = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=50),
    st.builds(packed, trees),
    st.builds(packed, changed),
    damaged(),
    st.integers(LIMIT - 2, LIMIT + 5).map(lambda n: b"\xc4" * n),
)


def resident_mib(process: int) -> float:
    (line,) = [each for each in Path(f"/proc/{process}/status").read_text().splitlines() if each.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def attack(count: int) -> Counter[str]:
    """Send `count` messages, a client each, beside one who is sound; return how many ended in what."""
    ends: Counter[str] = Counter()
    with serving_elsewhere(LIMIT) as (process, address), client(address) as sound:
        expected = ask(sound, VALID)["actions"]

        @given(messages)
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def one(message: bytes | str) -> None:
            with client(address) as ws:
                try:
                    ws.send(message)
                    reply = ws.recv(timeout=30)
                except ConnectionClosed as closed:  # before the reason could be read, or too large
                    assert closed.rcvd is not None and closed.rcvd.code in (1009, 1011), closed
                    ends["closed"] += 1
                    return
                if isinstance(reply, bytes):
                    assert np.isfinite(unpack(reply)["actions"]).all()
                    ends["actions"] += 1
                    return
                assert 10 < len(reply) < 3000 and "Traceback" not in reply and "policy failed" not in reply, reply
                with pytest.raises(ConnectionClosed):
                    ws.recv(timeout=30)
                ends["refused"] += 1
            if sum(ends.values()) % 100 == 0:
                np.testing.assert_array_equal(ask(sound, VALID)["actions"], expected)

        before = resident_mib(process)
        one()
        assert resident_mib(process) < before + 64
        np.testing.assert_array_equal(ask(sound, VALID)["actions"], expected)
    return ends


@pytest.mark.slow
def test_hundreds_of_malformed_messages() -> None:
    ends = attack(300)
    assert ends["refused"] > 150 and ends["closed"] > 1


@pytest.mark.slow
@pytest.mark.exhaustive
def test_ten_thousand_malformed_messages() -> None:
    assert sum(attack(10_000).values()) >= 9_900
