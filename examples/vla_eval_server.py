"""What `stages.serve` serves, for vla-evaluation-harness: its own model server, which asks ours.

    python -m stages.serve                                                                    # in one terminal
    PYTHONPATH=. python -m examples.vla_eval_server --address 127.0.0.1:8001 --args.url ws://127.0.0.1:8000

The second in an environment that has vla-eval (PyPI). Its sessions, chunks, checks of what is expected and /config come
with its server. VLA_FLOW_AGENT_TOKEN is shown to a server that demands a token. vla-eval's LIBERO sends pictures turned
by 180 degrees, pose and fingers, as openpi's does, and no joints: train with policy.proprio=[ee_pose,gripper].
"""

import logging
import os
from collections import deque
from typing import Any

import numpy as np
from vla_eval.model_servers.base import SessionContext
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.model_servers.serve import run_server
from vla_eval.specs import GRIPPER_CLOSE_POS, IMAGE_RGB, LANGUAGE, POSITION_DELTA, ROTATION_AA, STATE_EEF_POS_AA_GRIP
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from pipeline.inference.codec import pack, unpack
from pipeline.inference.observation import window

log = logging.getLogger(__name__)
TOKEN = "VLA_FLOW_AGENT_TOKEN"  # of a server that demands one
DRAWN = {"image_size": 256, "render": "full"}
SENT = {"agentview", "eye_in_hand", "ee_pose", "gripper"}


class VlaFlow(PredictModelServer):
    """Asks the server at `url`, one observation at a time, for the chunk that vla-eval then carries out.

    Raises:
        ValueError: the policy takes what vla-eval does not send.
    """

    def __init__(self, url: str = "ws://127.0.0.1:8000") -> None:
        self._url = url
        self._server: ClientConnection | None = None
        self._told = told = self._connect()
        if lacking := set(told["inputs"]) - SENT:
            raise ValueError(
                f"{url}: the policy takes {', '.join(sorted(lacking))}, which vla-eval does not send. Train with "
                "policy.proprio=[ee_pose,gripper]"
            )
        learnt = told.get("sim") or {}
        if other := {name: learnt.get(name) for name, value in DRAWN.items() if learnt.get(name) != value}:
            log.warning(
                "%s: the policy learnt from pictures of %s, vla-eval's LIBERO draws %s: its rate is of other pictures. "
                "Train with sim=full sim.image_size=256",
                url,
                other,
                DRAWN,
            )
        super().__init__(chunk_size=told["n_action_steps"])
        history = told["history"]
        self._n_obs_steps: int = history["n_obs_steps"]
        self._stride: int = max(1, history["control_steps_apart"] // told["n_action_steps"])
        self._past: dict[str, deque[dict[str, np.ndarray]]] = {}  # per session, of the chunks before

    def _connect(self) -> dict[str, Any]:
        """Connect, and return what the server says of its policy."""
        token = os.environ.get(TOKEN)
        headers = {"Authorization": f"Api-Key {token}"} if token else None
        server = connect(self._url, max_size=None, compression=None, proxy=None, additional_headers=headers)
        told = unpack(server.recv())  # type: ignore[arg-type]
        self._server = server
        return told

    async def on_episode_end(self, result: dict[str, Any], ctx: SessionContext) -> None:
        self._past.pop(ctx.session_id, None)
        await super().on_episode_end(result, ctx)

    def get_observation_params(self) -> dict[str, Any]:
        return {"send_wrist_image": True, "send_state": True}

    def get_observation_spec(self) -> dict[str, Any]:
        return {"agentview": IMAGE_RGB, "wrist": IMAGE_RGB, "state": STATE_EEF_POS_AA_GRIP, "language": LANGUAGE}

    def get_action_spec(self) -> dict[str, Any]:
        return {"position": POSITION_DELTA, "rotation": ROTATION_AA, "gripper": GRIPPER_CLOSE_POS}

    def predict(self, obs: dict[str, Any], ctx: SessionContext) -> dict[str, Any]:
        seen = {
            "observation/image": np.asarray(obs["images"]["agentview"], np.uint8),
            "observation/wrist_image": np.asarray(obs["images"]["wrist"], np.uint8),
            "observation/state": np.asarray(obs["states"], np.float64),
        }
        if ctx.is_first or ctx.session_id not in self._past:
            self._past[ctx.session_id] = deque(maxlen=(self._n_obs_steps - 1) * self._stride)
        past = [*self._past[ctx.session_id], seen]
        if self._n_obs_steps > 1:
            rows = window(past, self._n_obs_steps, self._stride)
            seen = {name: np.stack([row[name] for row in rows]) for name in seen}
        actions = self._ask({**seen, "prompt": obs["task_description"]})
        self._past[ctx.session_id].append(past[-1])  # not what was refused
        return {"actions": actions}

    def _ask(self, request: dict[str, Any]) -> np.ndarray:
        message = pack(request)
        try:
            reply = self._exchange(message)
        except ConnectionClosed:  # the server was started again, or has waited for an hour
            reply = self._exchange(message)
        if isinstance(reply, str):  # openpi's way to say what is wrong
            raise RuntimeError(reply)
        return unpack(reply)["actions"]

    def _exchange(self, message: bytes) -> str | bytes:
        if self._server is None and self._connect() != self._told:
            raise RuntimeError(f"{self._url}: serves something else by now. Start this server anew")
        server, self._server = self._server, None  # after a failure there is none: the next call connects anew
        assert server is not None
        server.send(message)
        reply = server.recv()
        if isinstance(reply, bytes):  # after a text the server hangs up
            self._server = server
        return reply


if __name__ == "__main__":
    run_server(VlaFlow)
