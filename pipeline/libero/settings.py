"""Settings of the benchmark: which part of it, how it is simulated, where demonstrations come from."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from pipeline.ranges import Count, Natural, NotNegative, Seed, Share

SUITE_SIZES = {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}
"""Tasks of each suite."""
Camera = Literal["agentview", "eye_in_hand", "agentview_depth", "eye_in_hand_depth"]


@dataclass(frozen=True)
class Data:
    """Which part of LIBERO."""

    suites: Annotated[tuple[str, ...], Field(min_length=1)]
    tasks: dict[str, tuple[int, ...] | None]  # of each suite, LIBERO's task ids; null is all of them


@dataclass(frozen=True)
class Sim:
    """The simulator that records demonstrations and evaluates policies. Both must draw alike."""

    assets_path: str | None  # a copy of LIBERO's assets of your own; null: those that are installed
    render: Literal["fast", "full"]
    gl: Literal["auto", "egl", "osmesa"]
    image_size: Annotated[int, Field(ge=8, le=1024)]  # pixels, square
    settle_steps: Natural  # control steps of the no-op action before anything counts
    seed: Seed


@dataclass(frozen=True)
class Keys:
    """Where things are in data of your own: features of a LeRobotDataset, data sets of an HDF5 demonstration."""

    cameras: Annotated[dict[str, str], Field(min_length=1)]  # a name of your choice -> key
    state: dict[str, str]  # likewise
    action: str
    instruction: str  # also an attribute, of HDF5; =TEXT is the instruction itself


@dataclass(frozen=True)
class Demos:
    """Where demonstrations come from."""

    source: Literal["scripted", "path", "official", "own"]
    path: str | None  # source=path: directory that holds <suite>/<task>_demo.hdf5; own: of a data set
    keys: Keys | None  # source=own
    episodes: Count  # scripted: demonstrations per task
    depth: bool  # scripted: keep the depth of both cameras, too; path: your files have it
    first_init_state: Natural  # scripted: row of the task's init states that the first one starts from
    displaced: (
        NotNegative  # scripted: metres that what lies on the table is moved in x and y at most, in a share of them
    )
    displaced_share: Share  # scripted: that share, 0 to 1, spread evenly over the rows
    recovery_share: Share  # scripted: share of them that begin where the hand has missed the object or the target
    noise_sigma: NotNegative  # scripted: std of the noise on the executed action, not while grasping or setting down
    trajectory_diversity: (
        Share  # scripted: how much speed, heights and grasp vary beyond what the scene asks for, 0 to 1
    )
