"""A picture of an episode for a README: sharper than what the policy sees, of the very same motion."""

from dataclasses import replace

import numpy as np
from jaxtyping import UInt8

from pipeline.libero.settings import Sim
from pipeline.libero.sim.simulator import Simulator
from pipeline.libero.suites import Task, init_states
from pipeline.rollout.agent import Agent, RecordingAgent
from pipeline.rollout.episode import EpisodeSettings, run_episode
from pipeline.rollout.results import EpisodeRecord
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
    recording = RecordingAgent(agent)
    with Simulator(task, sim, agent.cameras or (CAMERA,)) as simulator:
        record = run_episode(simulator, recording, task, episode, settings)
    actions = np.concatenate(recording.chunks)[: record.steps]
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
