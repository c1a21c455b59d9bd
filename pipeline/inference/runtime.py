"""An exported policy, run by ONNX Runtime: what acts is what `Policy` is, without torch, open_clip or the store.

    policy = OnnxPolicy.load("runs/flow/onnx")
    policy.reset(seed=0)
    actions = policy.act({"agentview": rgb, ...}, "pick up the black bowl")

Needs numpy, onnxruntime and pillow only.
"""

import os
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.errors import ConfigError, DataError, did_you_mean
from pipeline.inference import manifest
from pipeline.inference.tokenizer import BytePairs

NORM_TOLERANCE = 0.01  # of a quaternion: float16 keeps it within 0.001, an axis-angle is far off


class OnnxPolicy:
    """A policy as `stages.export_onnx` wrote it.

    An observation holds one entry per camera of the policy, upright, uint8 (H, W, 3), and one per proprioceptive input,
    (k,). A batch has a leading axis on every entry, and may have an instruction for each row. Frames that are not
    square are cropped at the centre to their shorter side.

    Noise comes from NumPy's generator, so that it is other noise than torch's of the same seed, from the same
    distribution. To compare the two give `noise` by hand.

    Args:
        folder: of the export.
        threads: for each graph; None: all cores.
        int8: take the image tower in 8 bits.
        n_action_steps: actions of a chunk that are carried out between two observations; None: the policy's own number.
            It decides nothing but which observations a policy with a history sees.

    Attributes:
        cameras, signals: names of what an observation holds.
        horizon: H, actions of a chunk.
        n_action_steps: how many of them are carried out before the next observation.
        noise_shape: (H, A): LIBERO's A is 7.
        sim: how the pictures were drawn that the policy learnt from; {} where that is not known.

    Raises:
        DataError: a file is missing, damaged, or of another policy.
        ConfigError: action steps that the policy can't have.
    """

    def __init__(
        self, folder: Path, threads: int | None = None, int8: bool = False, n_action_steps: int | None = None
    ) -> None:
        self._folder = folder
        self._tree = manifest.read(folder)
        self._threads = threads or _cores()
        about = self._tree["policy"]
        self.cameras = tuple(about["cameras"])
        self.signals: dict[str, int] = about["signals"]
        self.horizon = int(about["horizon"])
        self.n_action_steps = _action_steps(about, n_action_steps)
        self._n_obs_steps = int(about["n_obs_steps"])
        self._stride = int(about["n_action_steps"]) // self.n_action_steps
        self.noise_shape = (self.horizon, int(about["action_dim"]))
        self.sim: dict[str, Any] = about["sim"]
        self._pose = None if "own" in self._tree["describe"] else "ee_pose"  # another robot's may be anything
        self._size = int(self._tree["preprocessing"]["size"])
        self._known = {text: np.array(row, np.float32) for text, row in self._tree["instructions"].items()}
        self._policy = self._session(manifest.POLICY)
        self._image = self._session(manifest.IMAGE_INT8 if int8 else manifest.IMAGE)
        self._text: Any = None  # read when an instruction comes that is not known
        self._past: deque[dict[str, np.ndarray]] = deque(maxlen=1 + (self._n_obs_steps - 1) * self._stride)
        self.reset()

    @classmethod
    def load(
        cls,
        source: str | Path,
        device: str | None = None,
        threads: int | None = None,
        int8: bool = False,
        n_action_steps: int | None = None,
    ) -> "OnnxPolicy":
        """Read the export at `source`; see the class for the arguments. Raises also ConfigError for another device."""
        if device not in (None, "cpu"):
            raise ConfigError(f"device {device!r}: an exported policy runs on the CPU here. Use cpu, or leave it out")
        return cls(Path(source), threads, int8, n_action_steps)

    def reset(self, seed: int = 0) -> None:
        """Begin an episode: forget the observations before, and seed the noise."""
        self._generator = np.random.default_rng(seed)
        self._past.clear()

    def act(
        self,
        observation: Mapping[str, np.ndarray],
        instruction: str | Sequence[str],
        noise: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the next actions, (H, A) float32, in the environment's units; (B, H, A) for a batch.

        Args:
            noise: (H, A), or (B, H, A) for a batch, from N(0, 1); None: drawn.

        Raises:
            DataError: names each entry that is missing or wrong, and what is wanted.
        """
        encoded, single = self._encoded(observation)
        rows = len(next(iter(encoded.values())))
        self._past.append(encoded)
        given = self._draw(rows) if noise is None else self._checked_noise(noise[None] if single else noise, rows)
        actions = self._actions(self._window(self._past), self._texts(instruction, rows), given)
        return actions[0] if single else actions

    def sample(
        self,
        observation: Mapping[str, np.ndarray],
        instruction: str,
        n: int,
        noise: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return n answers to one observation, from n noises, (n, H, A); the observation is not remembered.

        Args:
            noise: (n, H, A); None: drawn.

        Raises:
            DataError: as `act`.
        """
        encoded, single = self._encoded(observation)
        if not single:
            raise DataError("sample takes one observation, without the axis of a batch")
        window = self._window([*self._past, encoded])
        many = {name: np.repeat(x, n, axis=0) for name, x in window.items()}
        given = self._draw(n) if noise is None else self._checked_noise(noise, n)
        return self._actions(many, self._texts(instruction, n), given)

    def describe(self) -> dict[str, Any]:
        """Return what the policy takes and gives, as plain JSON values, and whose export it is."""
        digests = {"policy": self._tree["policy"]["weights_sha256"], "encoder": self._tree["encoder"]["weights_sha256"]}
        return {**self._tree["describe"], "weights_sha256": digests, "steps": self._tree["policy"]["steps"]}

    def pixels(self, frames: np.ndarray) -> np.ndarray:
        """Return frames (B, H, W, 3) uint8 as the image tower takes them, (B, S, S, 3) uint8: cropped and resized."""
        height, width = frames.shape[1:3]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = np.ascontiguousarray(frames[:, top : top + side, left : left + side])
        if side == self._size:
            return square
        wanted = (self._size, self._size)
        return np.stack([np.asarray(Image.fromarray(x).resize(wanted, Image.Resampling.BICUBIC)) for x in square])

    def _session(self, name: str) -> Any:
        return manifest.session(manifest.content(self._folder, self._tree, name), self._threads)

    def _encoded(self, observation: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], bool]:
        """Return the inputs of the policy's graph that are of one moment, (B, ...), and whether B was not given."""
        inputs, single = _checked(observation, self.cameras, self.signals, self._pose)
        pixels = np.concatenate([self.pixels(inputs[camera]) for camera in self.cameras])
        (features,) = self._image.run(None, {"frames": pixels})
        # As the store has them, and every policy of this project is trained on them.
        rounded = features.astype(np.float16).astype(np.float32)
        if not np.isfinite(rounded).all():
            raise DataError(f"{manifest.IMAGE} gives features that are not finite in half precision")
        images = dict(zip(self.cameras, np.split(rounded, len(self.cameras)), strict=True))
        return images | {name: inputs[name] for name in self.signals}, single

    def _window(self, past: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Return the L observations that the policy sees when the last of `past` is the newest, (B, [L,] ...)."""
        if self._n_obs_steps == 1:
            return dict(past[-1])
        newest = len(past) - 1
        seen = [past[max(0, newest - i * self._stride)] for i in reversed(range(self._n_obs_steps))]
        if len(rows := {len(next(iter(before.values()))) for before in seen}) > 1:
            raise DataError(f"batches of {sorted(rows)} observations in one episode. Call reset() between them")
        return {name: np.stack([before[name] for before in seen], axis=1) for name in seen[0]}

    def _actions(self, window: Mapping[str, np.ndarray], text: np.ndarray, noise: np.ndarray) -> np.ndarray:
        given = {**window, "text": text, "noise": noise}
        return self._policy.run(None, {each.name: given[each.name] for each in self._policy.get_inputs()})[0]

    def _draw(self, rows: int) -> np.ndarray:
        return self._generator.standard_normal((rows, *self.noise_shape), np.float32)

    def _checked_noise(self, noise: np.ndarray, rows: int) -> np.ndarray:
        if noise.shape != (rows, *self.noise_shape):
            raise DataError(f"noise has shape {noise.shape}, not {(rows, *self.noise_shape)}")
        return np.ascontiguousarray(noise, np.float32)

    def _texts(self, instruction: str | Sequence[str], rows: int) -> np.ndarray:
        """Return the text features of each row, (B, D)."""
        texts = [instruction] * rows if isinstance(instruction, str) else list(instruction)
        if len(texts) != rows:
            raise DataError(
                f"{len(texts)} instructions for {rows} observations: give one for each, or one string for all"
            )
        for text in texts:
            if text not in self._known:
                self._known[text] = self._encode_text(text)
        return np.stack([self._known[text] for text in texts])

    def _encode_text(self, text: str) -> np.ndarray:
        about = self._tree["tokenizer"]
        if about is None:
            known = "; ".join(repr(each) for each in self._tree["instructions"])
            raise DataError(
                f"the instruction {text!r} is not one of those that the export holds, and it holds no tokenizer for "
                f"others. Known: {known}. Add it: python -m stages.export_onnx --instruction {text!r}"
            )
        if self._text is None:
            merges = manifest.content(self._folder, self._tree, about["file"]).decode().splitlines()
            self._text = self._session(manifest.TEXT), BytePairs(merges, about["length"])
        session, tokenize = self._text
        return session.run(None, {"tokens": tokenize([text])})[0][0]


def _cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _action_steps(about: Mapping[str, Any], asked: int | None) -> int:
    own = int(about["n_action_steps"])
    steps = asked or own
    if steps > about["horizon"]:
        raise ConfigError(f"n_action_steps is {steps}, but the policy gives chunks of {about['horizon']} actions")
    if about["n_obs_steps"] > 1 and own % steps:
        raise ConfigError(
            f"n_action_steps is {steps}, but the policy learnt from observations {own} steps apart: give a divisor"
        )
    return steps


def _checked(
    observation: Mapping[str, np.ndarray], cameras: Sequence[str], signals: Mapping[str, int], pose: str | None
) -> tuple[dict[str, np.ndarray], bool]:
    """Return an observation's inputs as a batch, and whether it was none. Raises DataError: names all that is wrong."""
    shapes = dict.fromkeys(cameras, "uint8 (H, W, 3)") | {name: f"float32 ({k},)" for name, k in signals.items()}
    wrong, found = [], {}
    for name in shapes:
        if name not in observation:
            wrong.append(f"{name!r} is missing.{did_you_mean(name, observation)}" if observation else f"no {name!r}")
            continue
        try:
            given = np.asarray(observation[name])
            found[name] = _frames(given) if name in cameras else _signal(given, signals[name], name == pose)
        except (DataError, TypeError, ValueError) as error:
            wrong.append(f"{name!r} {error}")
    if not wrong:
        before = {name: x.shape[: x.ndim - (3 if name in cameras else 1)] for name, x in found.items()}
        if len(set(before.values())) > 1 or max(map(len, before.values())) > 1:
            wrong.append(
                f"entries of different batches: {', '.join(f'{name} {shape}' for name, shape in before.items())}"
            )
    if wrong:
        wanted = "; ".join(f"{name}: {shape}" for name, shape in shapes.items())
        raise DataError(f"observation: {'; '.join(wrong)}. This policy takes {wanted}")
    single = found[cameras[0]].ndim == 3
    return {name: x[None] if single else x for name, x in found.items()}, single


def _frames(frames: np.ndarray) -> np.ndarray:
    if frames.dtype != np.uint8:
        raise DataError(f"is {frames.dtype}, not uint8")
    if frames.ndim < 3 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise DataError(f"has shape {frames.shape}, not (H, W, 3), nor that after the axis of a batch")
    return frames


def _signal(given: np.ndarray, size: int, is_pose: bool) -> np.ndarray:
    if given.dtype.kind not in "fiu":
        raise DataError(f"is {given.dtype}, not float32")
    if given.ndim < 1 or given.shape[-1] != size or 0 in given.shape:
        raise DataError(f"has shape {given.shape}, not ({size},), nor that after the axis of a batch")
    values = given.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError(f"holds {values[~np.isfinite(values)][0]}: every number must be finite")
    if not is_pose:
        return values
    quat = values[..., 3:]  # x, y, z, w; of q and -q, which are the same rotation, the one with q_x >= 0
    if (off := np.abs(np.linalg.norm(quat, axis=-1) - 1) > NORM_TOLERANCE).any():
        norm = np.linalg.norm(quat, axis=-1)[off].flat[0]
        raise DataError(f"has a quaternion (its last four numbers) of norm {norm:.3g}, not 1")
    return np.concatenate([values[..., :3], np.where(quat[..., :1] < 0, -quat, quat)], axis=-1)
