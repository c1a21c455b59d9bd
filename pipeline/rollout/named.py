"""An agent of one's own: a class named as package.module:Class, judged by the same protocol as ours.

class Mine:                                # see pipeline.rollout.agent.Agent
    cameras = ("agentview", "eye_in_hand")
    n_action_steps = 8
    def __init__(self, path: str | None = None): ...    # `sim`, if it has such an argument: how the simulator draws
    def reset(self, task, seed): ...       # task.language is the instruction
    def act(self, obs): ...                # obs.images, obs.joint_pos, ee_pose, gripper -> (h, 7)
    @staticmethod                          # optional: see `class_identity`
    def identity(path): ...
"""

import hashlib
import importlib
import importlib.metadata
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, DataError, PipelineError, did_you_mean
from pipeline.libero.settings import Sim
from pipeline.libero.sim.simulator import CAMERAS, DEPTH_CAMERAS
from pipeline.rollout.agent import Agent, warn_of_pictures

HOW = "An agent is a class with cameras, n_action_steps, reset(task, seed) and act(obs): see docs/evaluation.md"


def is_named(agent: str) -> bool:
    """Return whether an agent's name is that of a class."""
    module, colon, name = agent.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), name))


def plan_named(agent: str, path: Path | None, sim: Sim) -> tuple[Callable[[], Agent], dict[str, Any]]:
    """Return what makes the agent, and its identity: that of the class, and the name of `path`.

    Args:
        agent: package.module:Class.
        path: the class's one argument, such as a checkpoint; None: it gets none.
        sim: given to a class that has an argument `sim`, so that it can refuse other pictures than it knows. For
            another one it is logged what the pictures are, if they are not LIBERO's usual ones.

    Raises:
        ConfigError: no such module, class or path, or a class that does not take it.
    """
    made = load_class(agent)
    if path is not None and not path.exists():
        raise ConfigError(f"--policy {path}: not found. It is what {agent} is made with")
    argument = None if path is None else str(path.resolve())
    check_argument(agent, made, argument)
    if not _asked(made, sim):  # a class that has it looks for itself
        warn_of_pictures(sim)
    identity = class_identity(agent, argument)
    named = {} if path is None else {"policy": path.name}
    return partial(make, agent, argument, sim, identity), {**identity, **named}


def class_identity(agent: str, path: str | None) -> dict[str, Any]:
    """Return what the results of a class depend on, as plain JSON values.

    That is the version and the code of its package, the content of `path`, and what its `identity(path)` says, if it
    has that: a static method for what it alone knows, such as what a server at an address of its own serves.

    Raises:
        ConfigError: its `identity` fails, or gives what is not JSON.
        PipelineError: that its `identity` raises.
    """
    made = load_class(agent)
    identity: dict[str, Any] = {"version": _version(made.__module__), "code_sha256": _code_digest(agent, made)}
    if path is not None:
        identity["policy_sha256"] = _digest(Path(path))
    if hasattr(made, "identity"):
        identity["identity"] = _own_identity(agent, made, path)
    return identity


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
    except Exception as error:
        raise ConfigError(f"--agent {agent}: importing {module_name} failed ({error!r}). Mend it") from error
    if not inspect.isclass(found := getattr(module, name, None)):
        classes = [n for n, value in vars(module).items() if inspect.isclass(value)]
        raise ConfigError(
            f"--agent {agent}: {module_name} has no class {name}.{did_you_mean(name, classes or ['none'])}"
        )
    return found


def check_argument(agent: str, made: Callable[..., Any], path: str | None) -> None:
    """Raise ConfigError for a class that is not made with this argument, or with none."""
    try:
        inspect.signature(made).bind(*([] if path is None else [path]), **_asked(made, None))
    except TypeError as error:
        remedy = "Give --policy PATH" if path is None else "Leave --policy out"
        raise ConfigError(f"--agent {agent}: cannot be made so ({error}). {remedy}") from None
    except ValueError:  # of a class in C that has no signature
        return


def make(agent: str, path: str | None, sim: Sim, identity: Mapping[str, Any] | None = None) -> Agent:
    """Return the agent, in a worker.

    Args:
        identity: what `class_identity` said when the evaluation was planned; None: is not looked at.

    Raises:
        ConfigError: what the class makes is no agent.
        DataError: its code, or what it is made with, is not what it was.
    """
    loaded = load_class(agent)
    made = loaded(*([] if path is None else [path]), **_asked(loaded, sim))
    if identity is not None and class_identity(agent, path) != identity:  # after loading, so that this is what counts
        raise DataError(
            f"--agent {agent}: its code, or what it is made with, has changed since the evaluation began. Start the "
            "same command again"
        )
    cameras, steps = getattr(made, "cameras", None), getattr(made, "n_action_steps", None)
    if not isinstance(made, Agent):
        lacking = [name for name in ("cameras", "n_action_steps", "reset", "act") if not hasattr(made, name)]
        raise ConfigError(f"--agent {agent}: lacks {', '.join(lacking)}. {HOW}")
    known = (*CAMERAS, *DEPTH_CAMERAS)
    if not isinstance(cameras, tuple | list) or (wrong := [name for name in cameras if name not in known]):
        what = f"{wrong[0]!r} is none" if isinstance(cameras, tuple | list) else f"{cameras!r} is no tuple or list"
        raise ConfigError(f"--agent {agent}: its cameras: {what}. Give some of {', '.join(known)}, or () for none")
    if type(steps) is not int or steps < 1:
        raise ConfigError(f"--agent {agent}: its n_action_steps is {steps!r}. Give a whole number from 1")
    if not isinstance(cameras, tuple):
        made.cameras = tuple(cameras)
    return made


def _asked(made: Callable[..., Any], sim: Sim | None) -> dict[str, Any]:
    """Return the argument `sim` for a class that has it."""
    try:
        return {"sim": sim} if "sim" in inspect.signature(made).parameters else {}
    except ValueError:  # of a class in C that has no signature
        return {}


def _own_identity(agent: str, made: Any, path: str | None) -> Any:
    if not isinstance(inspect.getattr_static(made, "identity"), staticmethod | classmethod):
        raise ConfigError(f"--agent {agent}: its identity is no static method. Put @staticmethod above it")
    try:
        return json.loads(json.dumps(made.identity(path), allow_nan=False))
    except PipelineError:
        raise
    except Exception as error:
        raise ConfigError(
            f"--agent {agent}: its identity({path!r}) failed ({error!r}). It is to return plain JSON values"
        ) from error


def _version(module: str) -> str | None:
    """Return the version of the installed package that a module is of; None for one that is just a file."""
    packages = importlib.metadata.packages_distributions().get(module.partition(".")[0])
    return importlib.metadata.version(packages[0]) if packages else None


def _code_digest(agent: str, made: Callable[..., Any]) -> str:
    """Return the SHA-256 of the Python files of the top-level package that a class is of, or of its one module."""
    top = sys.modules.get(made.__module__.partition(".")[0])
    folders = [Path(each) for each in getattr(top, "__path__", [])]
    file = getattr(top, "__file__", None)
    if not folders and file is None:
        raise ConfigError(f"--agent {agent}: {made.__module__} has no file. Give a class of a module of your own")
    digest = hashlib.sha256()
    for folder in folders or [Path(str(file)).parent]:
        for each in sorted(folder.rglob("*.py")) if folders else [Path(str(file))]:
            digest.update(f"{each.relative_to(folder).as_posix()}\0{_digest(each)}\0".encode())
    return digest.hexdigest()


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of all files of a directory and their names."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for each in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{each.relative_to(path).as_posix()}\0{_digest(each)}\0".encode())
    return digest.hexdigest()
