"""Units cover every row once, in order; the fingerprint moves when anything it names does, and only then."""

from dataclasses import replace

import numpy as np
import pytest

from cache.errors import StoreError
from cache.plan import canonical_json
from cache.units import Episode, units
from tests.cache.synthetic import LENGTHS, make_plan


@pytest.mark.parametrize("seed", range(20))
def test_units_cover_each_row_once_and_in_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    episodes = [
        Episode(int(n), 0, "", str(i), payload=i) for i, n in enumerate(rng.integers(1, 40, rng.integers(1, 9)))
    ]
    shard_rows = int(rng.integers(1, 50))
    made = list(units(episodes, shard_rows))
    rows = [(s.payload, t) for unit in made for s in unit.segments for t in range(s.start, s.stop)]
    assert rows == [(i, t) for i, episode in enumerate(episodes) for t in range(episode.rows)]
    assert [unit.index for unit in made] == list(range(len(made)))
    assert all(unit.rows == shard_rows for unit in made[:-1])
    assert 0 < made[-1].rows <= shard_rows


def test_fingerprint_depends_on_all_it_should() -> None:
    plan = make_plan()
    first = plan.episodes[0]
    others = [
        replace(plan, identity={**plan.identity, "obs_shift": 0}),
        replace(plan, fields=plan.fields[:-1]),
        replace(plan, episodes=plan.episodes[:-1]),
        replace(plan, episodes=(replace(first, digest="1"), *plan.episodes[1:])),
        replace(plan, episodes=(replace(first, rows=6), *plan.episodes[1:])),
        replace(plan, episodes=(replace(first, task=1), *plan.episodes[1:])),
        replace(plan, episodes=(plan.episodes[1], first, *plan.episodes[2:])),
        replace(plan, instructions=("lift the cup", "open the drawer")),
        replace(plan, task_ids=(3, 8)),
        replace(plan, shard_rows=32),
        replace(plan, chunk_rows=8),
    ]
    assert len({plan.fingerprint, *(other.fingerprint for other in others)}) == len(others) + 1


def test_fingerprint_depends_on_nothing_else() -> None:
    plan = make_plan()
    payloads = tuple(replace(episode, payload="elsewhere") for episode in plan.episodes)
    turned = dict(reversed(plan.identity.items()))
    assert replace(plan, episodes=payloads, identity=turned).fingerprint == plan.fingerprint
    # A constant, so that a change of the scheme, which makes everybody embed again, is not made unawares.
    assert plan.fingerprint == "96c0169b2557c6df7eb2d113b39cde79c35c2177088a9a38fe8c7113617bb1a9"


def test_unit_keys_outlive_additions() -> None:
    plan, longer = make_plan(), make_plan((*LENGTHS, 40))
    keys = [plan.unit_key(unit) for unit in plan.units()]
    more = [longer.unit_key(unit) for unit in longer.units()]
    assert len(set(keys)) == len(keys)
    assert more[: len(keys) - 1] == keys[:-1]  # the last shard was part full and is not any more
    assert more[len(keys) - 1] != keys[-1]
    changed = replace(plan, episodes=(replace(plan.episodes[0], digest="1"), *plan.episodes[1:]))
    assert [changed.unit_key(u) == k for u, k in zip(changed.units(), keys, strict=True)] == [False] + [True] * (
        len(keys) - 1
    )


def test_plans_that_cannot_be() -> None:
    with pytest.raises(StoreError, match="no episode"):
        make_plan(())
    with pytest.raises(StoreError, match="file1/demo_1 has no rows"):
        make_plan((3, 0))
    with pytest.raises(StoreError, match="not a multiple of chunk_rows 5"):
        make_plan(chunk_rows=5)


def test_canonical_json_is_canonical() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == '{"a":"\\u00e9","b":[1,2.5]}'
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json(float("nan"))
