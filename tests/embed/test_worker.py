"""Observation t goes with action t + obs_shift, in every unit, whatever the batches."""

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cache.schema import fields
from cache.units import Episode, units
from pipeline.embed.settings import Embed
from pipeline.embed.worker import BrokenEpisode, Embedder, MakeEmbedder, ahead
from pipeline.errors import AssetError, DataError
from tests.encode import tiny

LENGTHS = (7, 20, 2, 13)


def read(episode: int, cameras: tuple[str, ...], start: int, stop: int) -> dict[str, Any]:
    """Every value says its episode and time: 40 * episode + t; images of the second camera one more."""
    assert 0 <= start < stop <= LENGTHS[episode]
    value = (40 * episode + np.arange(start, stop)).astype(np.float32)
    images = {c: np.zeros((stop - start, 4, 4, 3), np.uint8) for c in cameras}
    for i, camera in enumerate(cameras):
        images[camera][:] = (value + i).astype(np.uint8)[:, None, None, None]
    wide = {"joint_pos": 7, "ee_pose": 7, "gripper": 2, "action": 7, "expert_action": 7, "ee_wrench": 6}
    return {"images": images, **{name: np.repeat(value[:, None], k, 1) for name, k in wide.items()}}


class Mean:
    """An encoder whose feature is the frame's value."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def prepare(self, frames: np.ndarray, light: np.ndarray | None) -> torch.Tensor:
        return torch.from_numpy(frames)

    def submit(self, images: torch.Tensor) -> Callable[[], dict[str, np.ndarray]]:
        self.batches.append(len(images))
        return lambda: {"image": images[:, 0, 0, :1].numpy().astype(np.float16)}


CAMERAS = ("agentview", "eye_in_hand")
SETTINGS = Embed(tiny.PARAMS, CAMERAS, 1, 0.2, 0.2, None, 1, 5, 100, 100, "stop")
FIELDS = fields(CAMERAS, 1, 1, ["expert_action"])


@pytest.fixture(autouse=True)
def reading(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Read from here instead of from files; the function returned puts another reader in."""

    def put(reader: Callable[..., Any]) -> None:
        monkeypatch.setattr("pipeline.embed.worker.read", reader)

    put(read)
    return put


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("shard_rows", [4, 12, 100])
@pytest.mark.parametrize("optional", [("expert_action", "ee_wrench"), ()])
def test_pairs(shift: int, shard_rows: int, optional: tuple[str, ...]) -> None:
    encoder = Mean()
    embedder = Embedder(replace(SETTINGS, obs_shift=shift), fields(CAMERAS, 1, 1, optional), encoder)
    episodes = [Episode(n - shift, 0, "", str(i), payload=i) for i, n in enumerate(LENGTHS)]
    made = [embedder(unit) for unit in units(episodes, shard_rows)]
    found = {name: np.concatenate([part[name] for part in made]) for name in made[0]}
    obs = np.array([40 * i + t for i, n in enumerate(LENGTHS) for t in range(n - shift)])
    np.testing.assert_array_equal(found.pop("image/agentview")[:, 0, 0], obs)
    np.testing.assert_array_equal(found.pop("image/eye_in_hand")[:, 0, 0], obs + 1)
    for name in ("joint_pos", "ee_pose", "gripper", *({"ee_wrench"} & set(optional))):
        np.testing.assert_array_equal(found.pop(f"lowdim/{name}")[:, -1], obs)
    for name in ("action", *({"expert_action"} & set(optional))):
        np.testing.assert_array_equal(found.pop(f"lowdim/{name}")[:, -1], obs + shift)
    assert not found
    expected = []
    for unit in units(episodes, shard_rows):
        full, rest = divmod(unit.rows, 5)
        expected += [5] * 2 * full + ([rest] * 2 if rest else [])
    assert encoder.batches == expected


def test_views_of_depth_have_no_other_light() -> None:
    cameras = ("agentview", "agentview_depth")
    encoder = Mean()
    lights: list[bool] = []
    encoder.prepare = lambda frames, light: lights.append(light is not None) or torch.from_numpy(frames)  # type: ignore
    embedder = Embedder(replace(SETTINGS, views=2, batch_size=50), fields(cameras, 2, 1), encoder)
    rows = embedder(next(iter(units([Episode(6, 0, "", "0", payload=0)], 100))))
    assert lights == [False, True, False, False]
    np.testing.assert_array_equal(rows["image/agentview_depth"][:, 0], rows["image/agentview_depth"][:, 1])


def test_a_read_error_surfaces(reading: Callable[..., None]) -> None:
    def broken(*_: Any) -> dict[str, Any]:
        raise DataError("demo_3: cannot be read")

    reading(broken)
    embedder = Embedder(SETTINGS, FIELDS, Mean())
    with pytest.raises(BrokenEpisode, match=r"^demo_3: cannot be read$") as caught:
        embedder(next(units([Episode(5, 0, "", "", 7)], 10)))
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301  # as a Dask worker sends it
    assert (str(again), again.payload) == ("demo_3: cannot be read", 7)


def test_frames_of_several_sizes_are_refused_by_name(reading: Callable[..., None]) -> None:
    def mixed(episode: int, cameras: tuple[str, ...], start: int, stop: int) -> dict[str, Any]:
        out = read(episode, cameras, start, stop)
        if episode == 1:
            out["images"] = {c: np.repeat(x, 2, axis=1) for c, x in out["images"].items()}
        return out

    reading(mixed)
    embedder = Embedder(SETTINGS, FIELDS, Mean())
    episodes = [Episode(n - 1, 0, "", str(i), payload=i) for i, n in enumerate(LENGTHS)]
    with pytest.raises(
        DataError, match=r"agentview: the frames of 0 are 4x4, those of 1 8x4. One store takes one size"
    ):
        embedder(next(iter(units(episodes, 100))))


def test_ahead_keeps_order_and_stops_when_left() -> None:
    assert list(ahead(range(100), 2)) == list(range(100))
    taken = []

    def endless() -> Any:
        i = 0
        while True:
            taken.append(i)
            yield i
            i += 1

    before = set(threading.enumerate())  # of other tests, some about to end
    items = ahead(endless(), 2)
    assert [next(items) for _ in range(6)] == list(range(6))
    (thread,) = set(threading.enumerate()) - before
    items.close()
    assert 6 <= len(taken) <= 10
    thread.join(10)
    assert not thread.is_alive()


def test_a_unit_is_read_while_another_one_is_encoded(reading: Callable[..., None]) -> None:
    begun = threading.Event()

    class Patient(Mean):
        def submit(self, images: torch.Tensor) -> Callable[[], dict[str, np.ndarray]]:
            assert images[0, 0, 0, 0] >= 40 or begun.wait(10)  # episode 0 waits for episode 1 to be read
            return super().submit(images)

    def noted(episode: int, *rest: Any) -> dict[str, Any]:
        if episode == 1:
            begun.set()
        return read(episode, *rest)

    reading(noted)
    embedder = Embedder(SETTINGS, FIELDS, Patient())
    made = units([Episode(6, 0, "", "0", 0), Episode(19, 0, "", "1", 1)], 6)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(embedder, (next(made), next(made)))
    np.testing.assert_array_equal(first["image/agentview"][:, 0, 0], range(6))
    np.testing.assert_array_equal(second["image/agentview"][:, 0, 0], range(40, 46))


def test_closing_gives_up_what_is_under_way() -> None:
    class Slow(Mean):
        def submit(self, images: torch.Tensor) -> Callable[[], dict[str, np.ndarray]]:
            closing.wait(10)
            return super().submit(images)

    closing = threading.Event()
    embedder = Embedder(replace(SETTINGS, batch_size=1), FIELDS, Slow())
    with ThreadPoolExecutor(2) as pool:
        made = units([Episode(6, 0, "", "0", 0), Episode(19, 0, "", "1", 1)], 6)
        running = [pool.submit(embedder, unit) for unit in (next(made), next(made))]
        threading.Timer(0.1, closing.set).start()
        embedder.close()
        for future in running:
            with pytest.raises(CancelledError):
                future.result(timeout=10)


def test_a_worker_with_other_weights_is_refused(tmp_path: Any) -> None:
    tiny.register(tmp_path)
    with pytest.raises(AssetError, match=r"differs in weights_sha256 from the one .*\(bc4a5890.*, not 00\)"):
        MakeEmbedder(SETTINGS, {"weights_sha256": "00"}, FIELDS)()
