"""Serve a policy that lerobot_side.py trained, over openpi's websocket protocol, on loopback.

    .scratch/peers/env/bin/python benchmarks/peers/lerobot_server.py .scratch/peers/act

Runs in the peers' environment; knows nothing of this project but the names of the inputs: `agentview`, `eye_in_hand`
(uint8, upright), `joint_pos`, `ee_pose`, `gripper`. One request at a time; Diffusion Policy begins from the same noise
each time, so that an evaluation can be repeated.
"""

import argparse
import hashlib
import json
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot_side import DEVICE, INPUTS, STATE, chunk, image_key
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve


class Policy:
    """Actions of one observation, by a policy of LeRobot."""

    def __init__(self, checkpoint: Path) -> None:
        cfg = PreTrainedConfig.from_pretrained(checkpoint)
        cfg.device = DEVICE
        self._network = get_policy_class(cfg.type).from_pretrained(checkpoint, config=cfg).to(DEVICE).eval()
        self._before, self._after = make_pre_post_processors(cfg, pretrained_path=str(checkpoint))
        self._inputs = json.loads((checkpoint / INPUTS).read_text())
        self._lock = threading.Lock()
        self.metadata = {
            "policy": f"LeRobot {cfg.type}",
            "sha256": hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest(),
            "n_action_steps": self._inputs["n_action_steps"],
        }

    def infer(self, observation: dict[str, Any]) -> np.ndarray:
        state = np.concatenate([observation[name] for name in self._inputs["state"]]).astype(np.float32)
        batch = {STATE: torch.from_numpy(state)[None], "task": [observation["prompt"]]}
        for camera in self._inputs["cameras"]:
            image = torch.from_numpy(np.array(observation[camera]))
            batch[image_key(camera)] = image.permute(2, 0, 1)[None].float() / 255
        with self._lock:
            return chunk(self._network, self._before, self._after, batch)[0].numpy()


def answer(connection: ServerConnection, policy: Policy) -> None:
    """Send the metadata, then actions for each observation, as openpi's server does."""
    with suppress(ConnectionClosed):
        connection.send(msgpack.packb(policy.metadata))
        for message in connection:
            observation = msgpack.unpackb(message, object_hook=from_wire)
            try:
                actions = policy.infer(observation)
            except Exception:
                connection.send(traceback.format_exc())
                raise
            connection.send(msgpack.packb({"actions": actions}, default=to_wire))


def from_wire(item: dict) -> Any:
    """Return the array that openpi's msgpack_numpy packed as a dict."""
    if b"__ndarray__" in item:
        return np.frombuffer(item[b"data"], np.dtype(item[b"dtype"])).reshape(item[b"shape"])
    return item


def to_wire(array: np.ndarray) -> dict:
    """Return what openpi's msgpack_numpy packs for an array."""
    return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="what lerobot_side.py wrote")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free (default)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    policy = Policy(args.checkpoint)
    with serve(lambda connection: answer(connection, policy), "127.0.0.1", args.port, max_size=2**24) as server:
        print(f"serving at ws://127.0.0.1:{server.socket.getsockname()[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
