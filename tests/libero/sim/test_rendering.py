"""What is left out of a drawing must not be missed in it."""

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.libero.settings import Sim
from pipeline.libero.sim import rendering
from pipeline.libero.sim.rendering import in_view
from pipeline.libero.sim.simulator import Simulator
from pipeline.libero.suites import init_states, tasks


def test_a_sphere_is_in_view_if_it_reaches_into_the_pyramid() -> None:
    """A camera at the origin of a turned frame, 90 degrees wide: its side planes are |x| = depth and |y| = depth."""
    turned = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])  # columns: the camera's right, up and back in the world
    seen = [  # right, up, back, radius, whether it is seen
        (0.0, 0.0, -1.0, 0.1, True),
        (0.9, -0.9, -1.0, 0.0001, True),
        (1.1, 0.0, -1.0, 0.08, True),  # 0.1 / sqrt(2) beyond the plane
        (1.1, 0.0, -1.0, 0.06, False),
        (0.0, -1.1, -1.0, 0.06, False),
        (0.0, 0.0, 0.2, 0.3, True),
        (0.0, 0.0, 0.2, 0.1, False),
        (5.0, 5.0, 5.0, 0.0, True),  # a plane has no radius
    ]
    local, radius = np.array([s[:3] for s in seen]), np.array([s[3] for s in seen])
    here = np.array([1.0, 2.0, 3.0])
    data = SimpleNamespace(geom_xpos=local @ turned.T + here, cam_xpos=[here], cam_xmat=turned.reshape(1, 9))
    model = SimpleNamespace(geom_rbound=radius, cam_fovy=[90.0])
    assert in_view(model, data, 0).tolist() == [s[4] for s in seen]


@pytest.mark.sim
@pytest.mark.slow
def test_pictures_are_the_same_without_what_is_out_of_view(monkeypatch: pytest.MonkeyPatch) -> None:
    task = tasks("libero_spatial", [4])[0]
    sim = Sim(None, "fast", "auto", 128, 2, 0)
    rng = np.random.default_rng(0)
    hidden: list[int] = []

    def counted(*args: object) -> np.ndarray:
        visible = in_view(*args)  # type: ignore[arg-type]
        hidden.append(int((~visible).sum()))
        return visible

    with Simulator(task, sim, ("agentview", "eye_in_hand", "eye_in_hand_depth")) as simulator:
        simulator.reset(init_states(task)[0], 0)
        groups = simulator.model.geom_group.copy()
        for _ in range(6):
            for _ in range(4):
                simulator.step(np.r_[rng.uniform(-1, 0.5, 3), rng.uniform(-0.4, 0.4, 3), -1.0])
            monkeypatch.setattr(rendering, "in_view", counted)
            without = simulator.observe().images
            monkeypatch.setattr(rendering, "in_view", lambda model, *_: np.ones(model.ngeom, bool))
            whole = simulator.observe().images
            for camera, image in whole.items():
                np.testing.assert_array_equal(without[camera], image, err_msg=camera)
        np.testing.assert_array_equal(simulator.model.geom_group, groups)
    assert min(hidden) > 5
    assert max(hidden) > 40
