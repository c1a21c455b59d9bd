"""Pictures of scenes, by the real simulator: what is told of them is what they show, by the seed alone."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.compute import Compute
from pipeline.errors import ConfigError, DataError
from pipeline.libero.settings import Sim
from pipeline.libero.suites import SUITES, init_states
from pipeline.scenes import job, record
from pipeline.scenes.catalogue import scenes
from pipeline.scenes.record import Photographer, Unit
from pipeline.scenes.settings import ScenesParams
from pipeline.scenes.state import Contents
from pipeline.scenes.store import HELD_OUT, TRAIN, UNSEEN, Pictures, fingerprint_of

pytestmark = [pytest.mark.sim, pytest.mark.slow]
ROWS = 16
SETTINGS = ScenesParams(units=5, held_out_units=1, held_out_scenes=("libero_90/3",), seed=0)
Rows = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def photographer() -> Iterator[Photographer]:
    made = Photographer(Sim(None, "fast", "auto", 128, 10, 0))
    patch = pytest.MonkeyPatch()
    patch.setattr(record, "PICTURES", ROWS)
    yield made
    patch.undo()
    made.close()


@pytest.fixture(scope="module")
def spatial(photographer: Photographer) -> tuple[Contents, Rows]:
    return photographer.take(Unit(0, 0, 0, 0), 0)


def test_the_130_tasks_play_in_32_scenes() -> None:
    every = scenes()
    assert len(every) == 32 and sum(len(scene.tasks) for scene in every) == 130
    assert [len([s for s in every if s.suite == suite]) for suite in SUITES] == [1, 10, 1, 9, 11]


def test_a_unit_is_a_function_of_itself_and_the_seed(
    photographer: Photographer, spatial: tuple[Contents, Rows]
) -> None:
    other = photographer.take(Unit(0, 0, 1, 0), 0)[1]  # of the expert at work, which leaves a controller behind
    again = photographer.take(Unit(7, 0, 0, 0), 0)[1]
    for name, values in spatial[1].items():
        np.testing.assert_array_equal(values, again[name], name)
    assert (spatial[1]["image/agentview"] != other["image/agentview"]).any()


def test_labels_show_where_things_are(spatial: tuple[Contents, Rows]) -> None:
    """In the agentview picture right is +y and down is +x, from thing to thing and from picture to picture."""
    contents, rows = spatial
    small = [i for i, kind in enumerate(contents.kinds) if kind not in ("wooden_cabinet", "flat_stove")]
    seen = [
        (*np.argwhere(label == i).mean(0), *place[i])
        for label, place in zip(rows["label/agentview"], rows["thing/position"], strict=True)
        for i in small
        if (label == i).sum() > 60 and place[i, 2] < 0.05  # on the table: what is higher looks farther away
    ]
    down, right, x, y, _ = np.array(seen).T
    assert len(seen) > 10
    assert np.corrcoef(right, y)[0, 1] > 0.95 and np.corrcoef(down, x)[0, 1] > 0.9


def test_what_is_held_is_at_the_hand(spatial: tuple[Contents, Rows]) -> None:
    _, rows = spatial
    held = np.flatnonzero(rows["hand/holding"] >= 0)
    assert len(held), "of so many poses the hand holds something in some"
    for n in held:
        i = rows["hand/holding"][n]
        off = rows["thing/position"][n, i] - rows["hand/position"][n]
        assert np.abs(off[:2]).max() < rows["thing/half_extent"][n, i, :2].max() + 0.02
        assert rows["thing/support"][n, i] == -1 == rows["thing/region"][n, i]


def test_things_lie_everywhere_and_no_row_is_an_init_state_of_the_benchmark(
    photographer: Photographer, spatial: tuple[Contents, Rows]
) -> None:
    contents, rows = spatial
    plate = contents.kinds.index("plate")
    places = rows["thing/position"][:, plate, :2]
    places = np.unique(places[~np.isnan(places).any(1)].round(3), axis=0)
    sim = photographer._simulator(0)
    joint = sim.model.joint("plate_1_joint0").qposadr[0]
    base = sim.data.body("robot0_base").xpos[:2]
    benchmark = np.concatenate([init_states(task)[:, 1 + joint : 3 + joint] - base for task in scenes()[0].tasks])
    far = np.linalg.norm(places[:, None] - benchmark, axis=-1).min(1)
    assert np.ptp(places, 0).max() > 0.15, "over the table"
    assert (far > 0.001).all(), "the plate is where no init state has it, to the millimetre"


def test_the_expert_at_work_grasps(photographer: Photographer) -> None:
    contents, rows = photographer.take(Unit(0, 0, 1, 0), 0)
    bowls = [i for i, kind in enumerate(contents.kinds) if kind == "akita_black_bowl"]
    assert np.ptp(rows["hand/position"], 0).max() > 0.1
    assert set(np.unique(rows["hand/holding"])) <= {-1, *bowls}


def test_pictures_are_taken_on_and_come_out_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "PICTURES", 2)
    monkeypatch.setattr(job, "PICTURES", 2)
    monkeypatch.setattr("pipeline.scenes.store.PICTURES", 2)
    monkeypatch.setattr("pipeline.scenes.store.CHUNK_ROWS", 2)
    sim, compute = Sim(None, "fast", "auto", 32, 2, 0), Compute("serial", None, 1)
    settings = replace(SETTINGS, units=2)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    job.take(settings, sim, compute, whole)

    class Stop(Exception):
        pass

    def fail(path: Path, index: int, rows: Rows) -> None:
        if index == 1:
            raise Stop
        write(path, index, rows)

    write = job.store.write
    monkeypatch.setattr(job.store, "write", fail)
    with pytest.raises(Stop):
        job.take(settings, sim, compute, stopped)
    with pytest.raises(DataError, match="no pictures of scenes there"):
        Pictures(stopped)
    monkeypatch.setattr(job.store, "write", write)
    took = job.take(settings, sim, compute, stopped)
    assert took["pictures"] == 6, "the first unit was not taken again"
    one, other = Pictures(whole), Pictures(stopped)
    assert one.split.tolist().count(UNSEEN) == 2 == one.split.tolist().count(HELD_OUT)
    assert one.split.tolist().count(TRAIN) == 4
    for name in ("image/agentview", "label/eye_in_hand", "thing/position"):
        np.testing.assert_array_equal(one.read(name), other.read(name))
    unseen = one.read("scene")[one.split == UNSEEN]
    assert {one.contents[int(s)].scene for s in unseen} == {"libero_90/3"}
    assert not set(unseen) & set(one.read("scene")[one.split != UNSEEN])


def test_damage_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("record", "job", "store"):
        monkeypatch.setattr(f"pipeline.scenes.{module}.PICTURES", 2)
    monkeypatch.setattr("pipeline.scenes.store.CHUNK_ROWS", 2)
    store = tmp_path / "scenes.zarr"
    settings = replace(SETTINGS, units=1, held_out_units=0, held_out_scenes=())
    job.take(settings, Sim(None, "fast", "auto", 32, 2, 0), Compute("serial", None, 1), store)
    shard = next(path for path in (store / "image/agentview/c").rglob("*") if path.is_file())
    content = bytearray(shard.read_bytes())
    content[100] ^= 255
    shard.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"image/agentview: damaged .* python -m stages.scenes"):
        Pictures(store).read("image/agentview")
    (store / "attributes.json").write_text(json.dumps({"version": 0}))
    with pytest.raises(DataError, match="is of version 0, not 1"):
        Pictures(store)
    assert fingerprint_of(store) is None, "the stage takes them anew"
    (store / "attributes.json").write_text('{"version": ')
    with pytest.raises(DataError, match=r"attributes.json: damaged .* python -m stages.scenes"):
        Pictures(store)
    assert fingerprint_of(store) is None is fingerprint_of(tmp_path)


def test_unknown_scenes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no scene 'libero_90/99'.*libero_90"):
        job.plan(replace(SETTINGS, held_out_scenes=("libero_90/99",)))
