"""Settings of the benchmark: which part of it, how it is simulated, where demonstrations come from."""

from dataclasses import dataclass
from typing import Literal

Camera = Literal["agentview", "eye_in_hand", "agentview_depth", "eye_in_hand_depth"]


@dataclass(frozen=True)
class Data:
    """Which part of LIBERO."""

    suites: tuple[str, ...]
    tasks: dict[str, tuple[int, ...] | None]  # per suite, LIBERO's task ids; null is all of them


@dataclass(frozen=True)
class Sim:
    """The simulator that records demonstrations and evaluates policies. Both must draw alike."""

    assets_path: str | None  # a copy of LIBERO's assets of your own; null: those that are installed
    render: Literal["fast", "full"]
    gl: Literal["auto", "egl", "osmesa"]
    image_size: int  # pixels, square
    settle_steps: int  # control steps of the no-op action before anything counts
    seed: int


@dataclass(frozen=True)
class Demos:
    """Where demonstrations come from."""

    source: Literal["scripted", "path", "official"]
    path: str | None  # source=path: directory that holds <suite>/<task>_demo.hdf5
    episodes: int  # scripted: demonstrations per task
    depth: bool  # scripted: keep the depth of both cameras, too; path: your files have it
    first_init_state: int  # scripted: row of the task's init states that the first one starts from
    displaced: float  # scripted: metres within which what lies on the table is moved in x and y, in a share of them
    displaced_share: float  # scripted: that share, 0 to 1, spread evenly over the rows
    second_tries: float  # scripted: share of them that begin where the hand has missed the object or the target
    noise_sigma: float  # scripted: std of the noise on the executed action, but not while grasping and setting down
    variety: float  # scripted: how much speed, heights and grasp vary beyond what the scene asks for, 0 to 1
