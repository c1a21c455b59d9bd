"""Settings of the pictures of LIBERO's scenes."""

from dataclasses import dataclass

from pipeline.ranges import Count, Natural, Seed


@dataclass(frozen=True)
class ScenesParams:
    """How many pictures are taken. Each is taken by both cameras."""

    units: Count  # of PICTURES each, spread evenly over the suites
    held_out_units: Natural  # of the same kind, never trained on
    held_out_scenes: tuple[str, ...]  # names of scenes of which nothing is trained on
    seed: Seed
