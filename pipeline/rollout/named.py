"""An agent of one's own: a class named as package.module:Class, judged by the same protocol as ours.

class Mine:                                # see pipeline.rollout.agent.Agent
    cameras = ("agentview", "eye_in_hand")
    n_action_steps = 8
    def __init__(self, path: str | None = None): ...
    def reset(self, task, seed): ...       # task.language is the instruction
    def act(self, obs): ...                # obs.images, obs.joint_pos, ee_pose, gripper -> (h, 7)
"""

import hashlib
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, did_you_mean
from pipeline.libero.sim.simulator import CAMERAS, DEPTH_CAMERAS
from pipeline.rollout.agent import Agent

HOW = "An agent is a class with cameras, n_action_steps, reset(task, seed) and act(obs): see docs/evaluation.md"


def is_named(agent: str) -> bool:
    """Return whether an agent's name is that of a class."""
    module, colon, name = agent.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), name))


def plan_named(agent: str, path: Path | None) -> tuple[Callable[[], Agent], dict[str, Any]]:
    """Return what makes the agent, and its identity: name, versions and digests of its module and of `path`.

    Args:
        agent: package.module:Class.
        path: the class's one argument, such as a checkpoint; None: it gets none.

    Raises:
        ConfigError: no such module, class or path.
    """
    made = load_class(agent)
    file = Path(inspect.getfile(made))
    identity: dict[str, Any] = {"version": _version(made.__module__), "module_sha256": _digest(file)}
    if path is not None:
        if not path.exists():
            raise ConfigError(f"--policy {path}: not found. It is what {agent} is made with")
        identity |= {"policy": path.name, "policy_sha256": _digest(path)}
    return partial(make, agent, None if path is None else str(path.resolve())), identity


def load_class(agent: str) -> Callable[..., Any]:
    """Return the class. Raises ConfigError."""
    module_name, _, name = agent.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"--agent {agent}: cannot import {module_name} ({error}). Run `python -m stages.eval_libero` from the "
            "directory that holds it, or set PYTHONPATH"
        ) from error
    if not inspect.isclass(found := getattr(module, name, None)):
        classes = [n for n, value in vars(module).items() if inspect.isclass(value)]
        raise ConfigError(
            f"--agent {agent}: {module_name} has no class {name}.{did_you_mean(name, classes or ['none'])}"
        )
    return found


def make(agent: str, path: str | None) -> Agent:
    """Return the agent, in a worker.

    Raises:
        ConfigError: what the class makes is no agent.
    """
    made = load_class(agent)() if path is None else load_class(agent)(path)
    cameras, steps = getattr(made, "cameras", None), getattr(made, "n_action_steps", None)
    if not isinstance(made, Agent):
        lacking = [name for name in ("cameras", "n_action_steps", "reset", "act") if not hasattr(made, name)]
        raise ConfigError(f"--agent {agent}: lacks {', '.join(lacking)}. {HOW}")
    known = (*CAMERAS, *DEPTH_CAMERAS)
    if not isinstance(cameras, tuple | list) or (wrong := [name for name in cameras if name not in known]):
        what = f"has {wrong[0]!r}" if isinstance(cameras, tuple | list) else f"is {cameras!r}"
        raise ConfigError(f"--agent {agent}: its cameras {what}; they are some of {', '.join(known)}")
    if type(steps) is not int or steps < 1:
        raise ConfigError(f"--agent {agent}: its n_action_steps is {steps!r}, not a number of actions")
    made.cameras = tuple(cameras)
    return made


def _version(module: str) -> str | None:
    """Return the version of the installed package that a module is of; None for one that is just a file."""
    packages = importlib.metadata.packages_distributions().get(module.partition(".")[0])
    return importlib.metadata.version(packages[0]) if packages else None


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of all files of a directory and their names."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for each in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{each.relative_to(path).as_posix()}\0{_digest(each)}\0".encode())
    return digest.hexdigest()
