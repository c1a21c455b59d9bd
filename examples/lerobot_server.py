"""Serve a policy of LeRobot, over openpi's websocket protocol on loopback, for `stages.eval_libero --agent ws://...`.

    python examples/lerobot_server.py CHECKPOINT                         # a directory, or a name in the hub
    python -m stages.eval_libero --agent ws://127.0.0.1:8000 --set sim.image_size=256 --set sim.render=full

The first in an environment that has lerobot, websockets and msgpack. The policy gets what LeRobot's own LIBERO gives:
`observation.images.image` and `.image2`, which are the mirror images of what is upright, and `observation.state`, the
hand's position, axis times angle, and fingers. Options tell of other names. One request at a time; noise is the same
each time, so that an evaluation can be repeated. A policy that looks back (n_obs_steps above 1), or averages chunks
(temporal_ensemble_coeff), is refused. Measured with ACT and Diffusion Policy; those that plan or keep more than a chunk
are refused, too.
"""

import argparse
import hashlib
import threading
import traceback
from contextlib import suppress
from typing import Any

import msgpack
import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

STATE = "observation.state"
IMAGES = {"observation.images.image": "agentview", "observation.images.image2": "eye_in_hand"}
TYPES = ("act", "diffusion", "pi0", "pi05", "smolvla")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Policy:
    """Actions of one observation, by a policy of LeRobot.

    Args:
        images: input of the policy -> camera of LIBERO.
        state: what is sent, one after the other, as `observation.state`.
        upright: give the policy upright frames, and not their mirror images.
        steps: actions of a chunk that are carried out; None: the policy's own number.
    """

    def __init__(
        self, checkpoint: str, images: dict[str, str], state: list[str], upright: bool, steps: int | None
    ) -> None:
        cfg = PreTrainedConfig.from_pretrained(checkpoint)
        cfg.device = DEVICE
        check(checkpoint, cfg, images, steps)
        self._network = get_policy_class(cfg.type).from_pretrained(checkpoint, config=cfg).to(DEVICE).eval()
        self._before, self._after = make_pre_post_processors(
            cfg, pretrained_path=checkpoint, preprocessor_overrides={"device_processor": {"device": DEVICE}}
        )
        self._images, self._state, self._upright = images, state, upright
        self._lock = threading.Lock()
        self.metadata = {
            "policy": f"LeRobot {cfg.type}",
            "sha256": digest(self._network),
            "n_action_steps": steps or cfg.n_action_steps,
            "inputs_of_lerobot": {**images, STATE: state, "upright": upright},
        }

    def infer(self, observation: dict[str, Any]) -> np.ndarray:
        """Return the chunk (H, 7)."""
        state = np.concatenate([np.ravel(observation[name]) for name in self._state]).astype(np.float32)
        batch: dict[str, Any] = {STATE: torch.from_numpy(state)[None], "task": [observation["prompt"]]}
        for key, camera in self._images.items():
            frame = observation[camera] if self._upright else observation[camera][:, ::-1]
            batch[key] = torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float() / 255
        with self._lock:
            return chunk(self._network, self._before, self._after, batch)[0].numpy()


def check(checkpoint: str, cfg: PreTrainedConfig, images: dict[str, str], steps: int | None) -> None:
    """Refuse what would be served otherwise than LeRobot runs it. Raises SystemExit."""
    if cfg.type not in TYPES:
        raise SystemExit(f"{checkpoint}: is of type {cfg.type}; {', '.join(TYPES)} can be served")
    if getattr(cfg, "n_obs_steps", 1) != 1:
        raise SystemExit(f"{checkpoint}: sees {cfg.n_obs_steps} observations at a time; only 1 can be served")
    if getattr(cfg, "temporal_ensemble_coeff", None) is not None:
        raise SystemExit(f"{checkpoint}: averages chunks (temporal_ensemble_coeff), which a server cannot")
    if set(cfg.image_features) != set(images):
        raise SystemExit(f"{checkpoint}: takes {', '.join(cfg.image_features)}; --images has {', '.join(images)}")
    length = getattr(cfg, "chunk_size", None) or cfg.horizon
    if steps is not None and not 1 <= steps <= length:
        raise SystemExit(f"--steps {steps}: {checkpoint} gives chunks of {length} actions")


@torch.no_grad()
def chunk(network: torch.nn.Module, before: Any, after: Any, batch: dict) -> torch.Tensor:
    """Return the actions (B, H, 7) of a batch of observations in the environment's units."""
    torch.manual_seed(0)
    inputs = before(dict(batch))
    if network.config.type != "diffusion":
        network.reset()
        return after(network.predict_action_chunk(inputs)).cpu()
    images = torch.stack([inputs[key] for key in network.config.image_features], dim=-4)
    inputs = {**inputs, "observation.images": images if images.ndim == 6 else images.unsqueeze(1)}
    if inputs[STATE].ndim == 2:
        inputs[STATE] = inputs[STATE].unsqueeze(1)
    return after(network.diffusion.generate_actions(inputs)).cpu()


def digest(network: torch.nn.Module) -> str:
    """Return the SHA-256 of the weights."""
    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


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
    parser.add_argument("checkpoint", help="directory that LeRobot wrote, or a name in the hub")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="actions of a chunk to carry out (default: the policy's number)")
    parser.add_argument(
        "--images", nargs="+", metavar="INPUT=CAMERA", default=[f"{key}={name}" for key, name in IMAGES.items()]
    )
    parser.add_argument("--state", nargs="+", metavar="NAME", default=["observation/state"])
    parser.add_argument("--upright", action="store_true", help="the policy learnt from upright frames")
    args = parser.parse_args()
    if wrong := [each for each in args.images if each.count("=") != 1]:
        parser.error(f"--images {wrong[0]}: give INPUT=CAMERA, such as {next(iter(IMAGES))}=agentview")
    images = dict(each.split("=") for each in args.images)
    policy = Policy(args.checkpoint, images, args.state, args.upright, args.steps)
    options = {"max_size": 2**24, "origins": [None]}  # no page in a browser has a business here
    with serve(lambda connection: answer(connection, policy), "127.0.0.1", args.port, **options) as server:
        print(f"serving at ws://127.0.0.1:{server.socket.getsockname()[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
