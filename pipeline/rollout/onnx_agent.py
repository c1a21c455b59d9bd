"""An exported policy in the simulator: the paired counterpart of `PolicyAgent`.

python -m stages.eval_libero --agent pipeline.rollout.onnx_agent:OnnxAgent --policy runs/flow/onnx --out results/onnx
python -m stages.compare results/flow results/onnx
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from pipeline.errors import DataError
from pipeline.inference.runtime import OnnxPolicy
from pipeline.libero.settings import Sim
from pipeline.libero.sim.simulator import Observation
from pipeline.libero.suites import Task
from pipeline.rollout.agent import check_drawn


class OnnxAgent:
    """An export, by ONNX Runtime. Its noise is torch's, as `PolicyAgent` draws it: the two differ in arithmetic alone.

    Args:
        folder: of the export.
        sim: how the simulator draws now; None: is not looked at.
        n_action_steps: actions of a chunk to carry out; None: the policy's own number.
        threads: of ONNX Runtime; one, as each worker of the evaluation has.
        int8: take the image tower in 8 bits.

    Raises:
        DataError: the export is damaged, or of a policy that was trained on other pictures.
        ConfigError: action steps that the policy can't have.
    """

    def __init__(
        self,
        folder: str | Path = "runs/flow/onnx",
        sim: Sim | None = None,
        n_action_steps: int | None = None,
        threads: int = 1,
        int8: bool = False,
    ) -> None:
        self._policy = OnnxPolicy(Path(folder), threads, int8, n_action_steps)
        if "own" in self._policy.describe():
            raise DataError(
                f"{folder}: the exported policy was trained on data of another robot, which LIBERO's simulator cannot "
                "show. Run it on its robot"
            )
        if sim is not None:
            check_drawn(self._policy.sim, sim)
        self.cameras = self._policy.cameras
        self.n_action_steps = self._policy.n_action_steps
        self._task: Task | None = None
        self._generator = torch.Generator()

    def reset(self, task: Task, seed: int) -> None:
        self._task = task
        self._generator = torch.Generator().manual_seed(seed)
        self._policy.reset(seed)

    def act(self, obs: Observation) -> Float[np.ndarray, "H 7"]:
        if self._task is None:
            raise RuntimeError("reset() comes before act()")
        given = {name: obs.images[name] for name in self.cameras}
        given |= {name: getattr(obs, name) for name in self._policy.signals}
        noise = torch.randn(1, *self._policy.noise_shape, generator=self._generator).numpy()
        # As `PolicyAgent` does: what is wrong with an observation is the simulator's fault.
        return self._policy.advance({name: x[None] for name, x in given.items()}, [self._task.language], noise)[0]


class Int8OnnxAgent(OnnxAgent):
    """The same with its image tower in 8 bits."""

    def __init__(self, folder: str | Path = "runs/flow/onnx", sim: Sim | None = None) -> None:
        super().__init__(folder, sim, int8=True)
