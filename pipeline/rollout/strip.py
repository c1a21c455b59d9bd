"""A picture of an episode for a README: sharper than what the policy sees, of the very same motion."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float, UInt8

from pipeline.config import Sim
from pipeline.libero.simulator import Observation, Simulator
from pipeline.libero.suites import Task, init_states
from pipeline.rollout.agent import Agent, Privileged
from pipeline.rollout.episode import EpisodeSettings, run_episode
from pipeline.rollout.record import EpisodeRecord
from pipeline.rollout.video import film_strip

CAMERA = "agentview"


def picture(
    agent: Agent, task: Task, episode: int, sim: Sim, settings: EpisodeSettings, size: int = 320, count: int = 6
) -> tuple[EpisodeRecord, UInt8[np.ndarray, "height width 3"]]:
    """Run an episode, then carry out its actions again under a larger camera: physics are deterministic.

    Args:
        size: pixels of each square frame.
        count: frames, from the first to the last.
    """
    noting = _Noting(agent)
    with Simulator(task, sim, agent.cameras or (CAMERA,)) as simulator:
        record = run_episode(simulator, noting, task, episode, settings)
    actions = np.concatenate(noting.chunks)[: record.steps]
    looks = set(np.linspace(0, len(actions), count).round().astype(int).tolist())
    frames = []
    with Simulator(task, replace(sim, image_size=size), (CAMERA,)) as simulator:
        simulator.reset(init_states(task)[record.init_row], settings.sim_seed)
        for step in range(len(actions) + 1):
            if step in looks:
                frames.append(simulator.observe().images[CAMERA])
            if step < len(actions):
                simulator.step(actions[step])
    return record, film_strip(np.stack(frames), len(frames))


class _Noting:
    """An agent that keeps the actions of another."""

    def __init__(self, agent: Agent) -> None:
        self.cameras = agent.cameras
        self.execute = agent.execute
        self.chunks: list[Float[np.ndarray, "H 7"]] = []
        self._agent = agent

    def reset(self, task: Task, seed: int) -> None:
        self._agent.reset(task, seed)

    def begin(self, simulator: Simulator, episode: int) -> None:
        if isinstance(self._agent, Privileged):
            self._agent.begin(simulator, episode)

    def act(self, obs: Observation) -> np.ndarray:
        actions = self._agent.act(obs)
        self.chunks.append(np.asarray(actions, np.float64)[: self.execute])
        return actions
