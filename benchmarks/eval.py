"""How much faster the engine rolls a policy out than the usual loop, which draws at every step.

    python -m benchmarks.eval [--policy runs/flow/policy] [--steps 96] [--episodes 3] [--rounds 2]

The trained policy (both cameras) on libero_spatial task 0. One process, by turns:
- libero: LIBERO's own OffScreenRenderEnv, stepped as OpenVLA and openpi do; it knows full render quality only;
- gymnasium: our LiberoEnv, which draws at each step, too;
- engine: pipeline.rollout.episode, which draws for a policy call only.
Then the engine on one and on two local workers, each with the policy; and on two that share the policy of one more
process (`stages.serve`), which makes batches of what they ask at once, on all cores. Rates are control steps per
second, resets, settling and the policy's own time included, building the environment not. Writes
benchmarks/results/eval.json.
"""

import argparse
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from examples.openpi_loop import served
from pipeline.compute import Compute, cores, map_unordered
from pipeline.config import Params, load
from pipeline.libero.conventions import upright
from pipeline.libero.gym_env import LiberoEnv, to_observation
from pipeline.libero.installation import find_assets
from pipeline.libero.proprio import ee_pose_from_quat
from pipeline.libero.settings import Sim
from pipeline.libero.sim import gl, robosuite_import
from pipeline.libero.sim.robosuite_import import import_libero
from pipeline.libero.sim.simulator import CAMERAS, NO_OP, Observation, Simulator
from pipeline.libero.suites import Task, init_states, tasks
from pipeline.policy.bundle import load_spec
from pipeline.provenance import cpu_name, versions
from pipeline.rollout.agent import PolicyAgent
from pipeline.rollout.engine import Evaluation, Finished, Item, Worker
from pipeline.rollout.episode import EpisodeSettings, run_episode
from pipeline.rollout.remote import plan_remote

SUITE_EPISODES, SUITE_STEPS = 500, 220  # of libero_spatial, at most


class Anything(PolicyAgent):
    """The policy, whatever it was trained on: here only its time counts, not what it does."""

    @classmethod
    def of(cls, path: Path, params: Params) -> "Anything":
        """Load it as if the simulator drew as in training."""
        pictures = load_spec(path).data["sim"]
        trained = replace(params.sim, render=pictures["render"], image_size=pictures["image_size"])
        return cls.load(path, params.embed.encoder, trained)  # type: ignore[return-value]


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--policy", type=Path, default=Path("runs/flow/policy"))
    parser.add_argument("--steps", type=int, default=96, help="control steps per episode (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=3, help="per loop and round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--worker-episodes", type=int, default=8, help="of each local worker (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/eval.json"))
    args = parser.parse_args(argv)
    params = load(args.params)
    result = {
        "machine": {"cpu": cpu_name(), "cores": cores(), "load_before": round(os.getloadavg()[0], 1)},
        "versions": versions(),
        "setting": f"libero_spatial task 0, both cameras, {params.sim.image_size} px, {args.steps} steps an episode",
        **one_process(params, args),
        **two_processes(params, args),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def one_process(params: Params, args: argparse.Namespace) -> dict[str, Any]:
    """Return control steps per second of each loop and quality, and the ratios."""
    with ExitStack() as open_ones:
        return _one_process(params, args, open_ones)


def _one_process(params: Params, args: argparse.Namespace, open_ones: ExitStack) -> dict[str, Any]:
    task = tasks("libero_spatial", [0])[0]
    agent = Anything.of(args.policy, params)
    full, fast = (replace(params.sim, render=render) for render in ("full", "fast"))
    loops: dict[str, Callable[[int], int]] = {
        "libero_full": libero_loop(task, full, agent, args.steps, open_ones),
        "gymnasium_full": gymnasium_loop(full, agent, args.steps, open_ones),
        "engine_full": engine_loop(task, full, agent, args.steps, open_ones),
        "gymnasium_fast": gymnasium_loop(fast, agent, args.steps, open_ones),
        "engine_fast": engine_loop(task, fast, agent, args.steps, open_ones),
    }
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for loop in loops.values():
        loop(0)  # warms caches
    for _ in range(args.rounds):
        for name, loop in loops.items():
            started = perf_counter()
            steps = sum(loop(episode) for episode in range(args.episodes))
            rates[name].append(steps / (perf_counter() - started))
    best = {name: round(median(found), 2) for name, found in rates.items()}
    return {
        "control_steps_per_s": best,
        "engine_over_libero_full": round(best["engine_full"] / best["libero_full"], 2),
        "engine_over_gymnasium_full": round(best["engine_full"] / best["gymnasium_full"], 2),
        "engine_over_gymnasium_fast": round(best["engine_fast"] / best["gymnasium_fast"], 2),
        "engine_fast_over_libero_full": round(best["engine_fast"] / best["libero_full"], 2),
    }


def libero_loop(task: Task, sim: Sim, agent: PolicyAgent, steps: int, open_ones: ExitStack) -> Callable[[int], int]:
    """Return a function that runs an episode as OpenVLA's and openpi's scripts do; it returns the steps taken."""
    gl.activate(sim.gl)
    # MuJoCo's cache of files speeds LIBERO's resets up.
    robosuite_import.cache_no_files = lambda: None  # type: ignore[assignment]
    size = sim.image_size
    env = import_libero(find_assets(sim).directory).OffScreenRenderEnv(
        bddl_file_name=str(task.bddl_file), camera_heights=size, camera_widths=size, ignore_done=True
    )
    open_ones.callback(env.close)
    rows = init_states(task)

    def observation(obs: dict[str, Any]) -> Observation:
        return Observation(
            images={name: upright(obs[f"{theirs}_image"]) for name, theirs in CAMERAS.items()},
            joint_pos=obs["robot0_joint_pos"].astype("float32"),
            ee_pose=ee_pose_from_quat(obs["robot0_eef_pos"], obs["robot0_eef_quat"]),
            gripper=obs["robot0_gripper_qpos"].astype("float32"),
            ee_wrench=np.zeros(6, "float32"),  # which LIBERO does not give
        )

    def run(episode: int) -> int:
        env.seed(sim.seed)
        env.reset()
        env.set_init_state(rows[episode])
        for _ in range(sim.settle_steps):
            obs, *_ = env.step(NO_OP)
        agent.reset(task, episode)
        taken = 0
        while taken < steps:
            for action in agent.act(observation(obs))[: agent.n_action_steps]:
                obs, *_ = env.step(action)
                taken += 1
        return taken

    return run


def gymnasium_loop(sim: Sim, agent: PolicyAgent, steps: int, open_ones: ExitStack) -> Callable[[int], int]:
    """Return a function that runs an episode in LiberoEnv."""
    env = LiberoEnv(sim, "libero_spatial", 0)
    open_ones.callback(env.close)

    def run(episode: int) -> int:
        obs, _ = env.reset(options={"init_row": episode})
        agent.reset(env.task, episode)
        taken = 0
        while taken < steps:
            for action in agent.act(to_observation(obs))[: agent.n_action_steps]:
                obs, *_ = env.step(action)
                taken += 1
        return taken

    return run


def engine_loop(task: Task, sim: Sim, agent: PolicyAgent, steps: int, open_ones: ExitStack) -> Callable[[int], int]:
    """Return a function that runs an episode by the engine."""
    simulator = open_ones.enter_context(Simulator(task, sim, agent.cameras))
    settings = EpisodeSettings(0, steps, 1e6, 0, sim.seed)
    return lambda episode: run_episode(simulator, agent, task, episode, settings).steps


def two_processes(params: Params, args: argparse.Namespace) -> dict[str, Any]:
    """Return the rates of one local worker, of two, and of two that share a policy; and what the whole suite takes."""
    evaluation = Evaluation(
        make_agent=partial(Anything.of, args.policy.resolve(), params),
        identity={},
        sim=params.sim,
        tasks=tuple(tasks("libero_spatial", [0])),
        episodes=50,
        settings=EpisodeSettings(0, args.steps, 1e6, 0, params.sim.seed),
    )
    one, two = (worker_rate(evaluation, workers, episodes=args.worker_episodes * workers) for workers in (1, 2))
    with served(str(args.policy), "--device", "cpu") as url:
        trained = load_spec(args.policy).data["sim"]
        drawn = replace(params.sim, render=trained["render"], image_size=trained["image_size"])
        make_agent, _ = plan_remote(url, drawn, None, 60.0)
        asking = replace(evaluation, make_agent=make_agent)
        shared = worker_rate(asking, 2, episodes=args.worker_episodes * 2)
    return {
        "one_worker_steps_per_s": round(one, 2),
        "two_workers_steps_per_s": round(two, 2),
        "two_over_one": round(two / one, 2),
        "two_workers_and_policy_process_steps_per_s": round(shared, 2),
        "policy_process_over_policy_in_each_worker": round(shared / two, 2),
        "suite": f"{SUITE_EPISODES} episodes, each of {SUITE_STEPS} steps (none solved): arithmetic from two workers",
        "suite_minutes_at_most": round(SUITE_EPISODES * SUITE_STEPS / two / 60, 1),
    }


def worker_rate(evaluation: Evaluation, workers: int, episodes: int) -> float:
    """Return control steps per second, from the moment at which every worker has ended an episode."""
    items = [Item(evaluation.tasks[0], episode, film=False) for episode in range(episodes)]
    compute = Compute("local", workers, 1)
    ended: list[tuple[float, int]] = []
    for _, finished in map_unordered(run_item, items, compute, setup=partial(Worker, evaluation)):
        ended.append((perf_counter(), finished.record.steps))
    return sum(steps for _, steps in ended[workers:]) / (ended[-1][0] - ended[workers - 1][0])


def run_item(worker: Worker, item: Item) -> Finished:
    """Run one episode on a worker."""
    return worker.run(item)


if __name__ == "__main__":
    main()
