"""openpi's LIBERO loop, with openpi's own client, against our server in our simulator, beside the policy by itself.

    python -m examples.openpi_loop                                     # runs/flow/policy, by params.yaml
    python -m examples.openpi_loop --set eval_libero.episodes=50

Serves the policy, judges it twice on the same initial states, directly and over openpi's protocol, and compares the two
(results/openpi/comparison.html). openpi-client wants numpy < 2: it runs in an environment of its own, .scratch/openpi,
which uv makes, as a process that is handed LIBERO's observation and hands back the actions to carry out.
"""

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

URL, PYTHON, TOKEN = "OPENPI_URL", "OPENPI_PYTHON", "VLA_FLOW_AGENT_TOKEN"
ENVIRONMENT = Path(".scratch/openpi")
REPLAN_STEPS = 5  # actions carried out of each chunk, as openpi's example has it, if the server names no number


def main(argv: list[str] | None = None) -> None:
    """Serve, evaluate twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="runs/flow/policy")
    parser.add_argument("--out", type=Path, default=Path("results/openpi"))
    args, settings = parser.parse_known_args(argv)
    python = environment()
    stage = [sys.executable, "-m", "stages.eval_libero", *settings]
    own, theirs = args.out / "direct", args.out / "client"
    subprocess.run([*stage, "--policy", args.policy, "--out", str(own)], check=True)
    with served(args.policy) as url:
        agent = ["--agent", "examples.openpi_loop:OpenpiLoop", "--out", str(theirs)]
        subprocess.run([*stage, *agent], check=True, env={**os.environ, URL: url, PYTHON: str(python)})
    pages = ["--out", str(args.out / "comparison.html")]
    subprocess.run([sys.executable, "-m", "stages.compare", str(own), str(theirs), *pages], check=True)


def environment(folder: Path = ENVIRONMENT) -> Path:
    """Return the Python that has openpi-client; make its environment if it is not there."""
    python = folder.absolute() / "bin/python"
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") or "uv"
    if not python.exists():
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True)
    packages = ["openpi-client==0.1.2", "typing-extensions"]  # which it imports, and does not name
    subprocess.run([uv, "pip", "install", "-q", "--python", str(python), *packages], check=True)
    return python


@contextmanager
def served(policy: str, *options: str) -> Iterator[str]:
    """Yield the address of a server of the policy, in a process of its own."""
    command = [sys.executable, "-m", "stages.serve", "--policy", policy, "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if found := re.search(r"at (ws://\S+)", line):
                threading.Thread(target=process.stderr.read, daemon=True).start()
                yield found[1]
                return
        raise RuntimeError(said)
    finally:
        process.terminate()
        process.wait(60)


class OpenpiLoop:
    """An agent for `stages.eval_libero --agent examples.openpi_loop:OpenpiLoop`.

    OPENPI_URL names the server (default: ws://127.0.0.1:8000), OPENPI_PYTHON a Python with openpi-client,
    VLA_FLOW_AGENT_TOKEN the token of a server that demands one.

    Raises:
        DataError: the policy that is served learnt from other pictures than those of `sim`.
        PipelineError: also in `act`: the process with openpi-client cannot be started, or has ended.
    """

    cameras = ("agentview", "eye_in_hand")

    def __init__(self, sim: Any) -> None:
        from pipeline.errors import PipelineError
        from pipeline.rollout.agent import check_drawn

        python = os.environ.get(PYTHON) or str(environment())
        command = [python, str(Path(__file__).absolute()), address()]
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean)
        except OSError as error:
            raise PipelineError(f"{PYTHON}: {python} cannot be started ({error}). Unset it, or name a Python") from None
        self.n_action_steps = int(self._exchanged()["n_action_steps"])
        check_drawn(self.identity(None)["metadata"].get("sim") or {}, sim)
        self._instruction = ""

    @staticmethod
    def identity(path: str | None) -> dict[str, Any]:
        """Return what is served, as plain values: the server's address and metadata. Raises PipelineError."""
        from pipeline.provenance import without_credentials
        from pipeline.rollout.metadata import plain
        from pipeline.rollout.remote import open_connection

        connection, metadata = open_connection(address())
        connection.close()
        return {"url": without_credentials(address()), "metadata": plain(metadata)}

    def reset(self, task: Any, seed: int) -> None:
        self._instruction = task.language

    def act(self, obs: Any) -> np.ndarray:
        from pipeline.libero.conventions import upright
        from pipeline.libero.proprio import axis_angle_from_quat

        return self._exchanged(
            image=upright(obs.images["agentview"]),  # back to LIBERO's own, upside-down
            wrist_image=upright(obs.images["eye_in_hand"]),
            position=obs.ee_pose[:3],
            axis_angle=axis_angle_from_quat(obs.ee_pose[3:].astype(np.float64)),
            gripper=obs.gripper,
            joints=obs.joint_pos,
            prompt=np.array(self._instruction),
        )["actions"]

    def _exchanged(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """Send arrays, if there are any, to the process with openpi-client; return what it sends."""
        from pipeline.errors import PipelineError
        from pipeline.provenance import without_credentials

        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            if arrays:
                write(self._process.stdin, **arrays)
            return read(self._process.stdout)
        except (EOFError, OSError) as error:  # a broken pipe is an OSError
            raise PipelineError(
                f"the process with openpi-client has ended; what it said stands above. See to it that the server at "
                f"{without_credentials(address())} runs (python -m stages.serve), then start the same command again: "
                "the episodes that are finished are kept"
            ) from error


def address() -> str:
    """Return the server's address."""
    return os.environ.get(URL, "ws://127.0.0.1:8000")


def client(url: str) -> None:
    """Do what openpi's example does with each observation: in the environment with openpi-client."""
    from openpi_client import image_tools, websocket_client_policy

    policy = websocket_client_policy.WebsocketClientPolicy(url, api_key=os.environ.get(TOKEN))
    told = policy.get_server_metadata()
    steps = int(told.get("n_action_steps", REPLAN_STEPS))
    write(sys.stdout.buffer, n_action_steps=np.array(steps))

    def picture(raw: np.ndarray) -> np.ndarray:
        turned = np.ascontiguousarray(raw[::-1, ::-1])
        return image_tools.convert_to_uint8(image_tools.resize_with_pad(turned, 224, 224))

    while True:
        try:
            seen = read(sys.stdin.buffer)
        except EOFError:
            return
        request = {
            "observation/image": picture(seen["image"]),
            "observation/wrist_image": picture(seen["wrist_image"]),
            "observation/state": np.concatenate([seen["position"], seen["axis_angle"], seen["gripper"]]),
            "observation/joint_position": seen["joints"],  # for a policy that wants it: openpi's example has none
            "prompt": str(seen["prompt"]),
        }
        write(sys.stdout.buffer, actions=policy.infer(request)["actions"][:steps])


def write(stream: IO[bytes], **arrays: np.ndarray) -> None:
    """Write one message to the other process: its length, and arrays as an .npz file."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    stream.write(content.tell().to_bytes(8, "little") + content.getvalue())
    stream.flush()


def read(stream: IO[bytes]) -> dict[str, np.ndarray]:
    """Return the next message. Raises EOFError at the end."""
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError("no message")
    size = int.from_bytes(head, "little")
    if len(content := stream.read(size)) < size:
        raise EOFError("half a message")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("ws"):
        client(sys.argv[1])
    else:
        main()
