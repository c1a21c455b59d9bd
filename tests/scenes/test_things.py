"""What lies on what, and another appearance: in LIBERO's own init states, drawn by the real simulator."""

import re

import numpy as np
import pytest

from pipeline.libero.settings import Sim
from pipeline.libero.sim.simulator import Simulator
from pipeline.libero.suites import init_states, tasks
from pipeline.scenes import appearance
from pipeline.scenes.appearance import background, varied
from pipeline.scenes.things import Things

pytestmark = [pytest.mark.sim, pytest.mark.slow]
SIM = Sim(None, "fast", "auto", 128, 10, 0)
LIES = {
    "in the top drawer": ("wooden_cabinet_1", "top_region"),
    "on the ramekin": ("glazed_rim_porcelain_ramekin_1", None),
    "on the cookie box": ("cookies_1", None),
    "on the stove": ("flat_stove_1", "cook_region"),
    "on the wooden cabinet": ("wooden_cabinet_1", "top_side"),
}


@pytest.mark.parametrize("said", LIES)
def test_the_bowl_lies_where_the_instruction_says(said: str) -> None:
    """LIBERO names the bowl by where it lies."""
    task = next(task for task in tasks("libero_spatial") if re.search(rf"bowl {said}\b", task.language))
    sim = Simulator(task, SIM)
    sim.reset(init_states(task)[0], 0)
    things = Things(sim)
    names = [thing.name for thing in things.things]
    support, region = things.supports()
    bowl = names.index("akita_black_bowl_1")
    thing, part = LIES[said]
    assert names[support[bowl]] == thing
    assert (things.regions[region[bowl]].part if region[bowl] >= 0 else None) == part
    assert support[names.index("plate_1")] == -1, "on the table"
    sim.close()


def test_another_appearance_ends_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appearance, "PLAIN", 0.0)
    monkeypatch.setattr(appearance, "SWAPPED", 1.0)
    sim = Simulator(next(t for t in tasks("libero_10") if "STUDY" in t.name), SIM)
    sim.reset(None, 0)
    things, model = Things(sim), sim.model
    found = {model.material(int(material)).name for material in background(things)}
    assert {"desk", "walls_mat", "floorplane"} <= found and not any(name.startswith("robot0") for name in found)
    assert not set(background(things)) & set(model.geom_matid[things.owner >= 0])
    fields = {name for name in dir(model) if isinstance(getattr(model, name), np.ndarray)}
    before = {name: getattr(model, name).copy() for name in fields}
    sim.set_state(sim.state())
    plain, labels = sim.observe().images["agentview"], sim.labels("agentview")
    with varied(sim, things, np.random.default_rng(0)) as changed:
        other = sim.observe().images["agentview"]
    assert changed and np.abs(other.astype(int) - plain).mean() > 10
    for name in fields:
        np.testing.assert_array_equal(getattr(model, name), before[name], name)
    sim.set_state(sim.state())
    np.testing.assert_array_equal(sim.observe().images["agentview"], plain)
    desk = np.isin(labels, np.flatnonzero(model.geom_matid == model.material("desk").id))
    wall = int(model.mat_texid[model.material("walls_mat").id].max())
    with sim.textured({model.material("desk").id: wall}):
        papered = sim.observe().images["agentview"]
    changed_pixels = np.abs(papered.astype(int) - plain).max(-1) > 8
    assert changed_pixels[desk].mean() > 0.5 and changed_pixels[~desk].mean() < 0.02
    np.testing.assert_array_equal(sim.observe().images["agentview"], plain)
    sim.close()
