"""A plan over made-up episodes, and rows that can be told from any others."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache import schema
from cache.plan import Plan
from cache.units import Episode, Unit
from cache.writer import Rows

FIELDS = (
    *(schema.image(camera, 2, 6) for camera in ("agentview", "eye_in_hand")),
    schema.lowdim("joint_pos", 7),
    schema.lowdim("action", 7),
    schema.grid("eye_in_hand", 2, 4, 5),
)
LENGTHS = (5, 21, 1, 8, 8, 30, 2, 12)
TEXT = np.arange(12, dtype=np.float32).reshape(2, 6) + 1


def make_plan(lengths: tuple[int, ...] = LENGTHS, shard_rows: int = 16, chunk_rows: int = 4, salt: str = "") -> Plan:
    return Plan(
        identity={"encoder": {"model": "fake", "weights_sha256": "00"}, "salt": salt},
        fields=FIELDS,
        episodes=tuple(
            Episode(n, i % 2, f"file{i % 3}/demo_{i}", hashlib.sha256(f"{salt}{i}".encode()).hexdigest(), payload=i)
            for i, n in enumerate(lengths)
        ),
        instructions=("lift the bowl", "open the drawer"),
        task_ids=(3, 7),
        shard_rows=shard_rows,
        chunk_rows=chunk_rows,
    )


def episode_rows(number: int, rows: int) -> dict[str, np.ndarray]:
    """Return what episode `number` holds in each field."""
    rng = np.random.default_rng(number)
    return {field.name: rng.normal(size=(rows, *field.shape)).astype(field.dtype) for field in FIELDS}


def expected(plan: Plan) -> dict[str, np.ndarray]:
    """Return the whole content of a store of `plan`."""
    parts = [episode_rows(e.payload, e.rows) for e in plan.episodes]
    return {field.name: np.concatenate([part[field.name] for part in parts]) for field in FIELDS}


@dataclass(frozen=True)
class MakeFake:
    """A factory; notes each unit it computes in a file, and can wait a little for somebody to kill it."""

    calls: Path | None = None
    lengths: tuple[int, ...] = LENGTHS
    seconds: float = 0.0

    def __call__(self) -> Rows:
        return self.rows

    def rows(self, unit: Unit) -> dict[str, np.ndarray]:
        import time

        if self.calls:
            with self.calls.open("a") as file:
                file.write(f"{unit.index}\n")
        time.sleep(self.seconds)
        parts = [
            {
                name: values[s.start : s.stop]
                for name, values in episode_rows(s.payload, self.lengths[s.payload]).items()
            }
            for s in unit.segments
        ]
        return {field.name: np.concatenate([part[field.name] for part in parts]) for field in FIELDS}


def tree(root: Path) -> dict[str, bytes]:
    """Return every file below a directory, by its relative path."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
