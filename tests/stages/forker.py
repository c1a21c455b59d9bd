"""Processes without their imports: one that has made them forks for each run, which then costs its own work only.

python -m tests.stages.forker CLIP_CONFIG     says ready; then on stdin, a line of JSON each:
    {"start": "stage" | "scheduler" | "worker", "argv": [...], "log": PATH}     answers with the process id
    {"wait": PID}                                                               answers with the exit status
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import distributed.cli.dask_scheduler
import distributed.cli.dask_worker
import open_clip

import stages.embed
from stages import cli
from tests.stages.embedding import ROOT

if len(sys.argv) > 1 and sys.argv[1].endswith(".json"):
    open_clip.add_model_config(sys.argv[1])  # at import, so that Dask's spawned workers know the model as well


class Forker:
    """The other end, for tests."""

    def __init__(self, clip_config: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.stages.forker", str(clip_config)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def start(self, what: str, argv: Sequence[str], log: Path) -> int:
        """Start a process, the leader of its own group; return its id."""
        return self._ask({"start": what, "argv": list(argv), "log": str(log)})

    def wait(self, pid: int) -> int:
        """Wait for the end; return the exit status, negative for a signal."""
        return self._ask({"wait": pid})

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)

    def _ask(self, question: dict) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def main() -> None:
    """Serve until stdin ends."""
    print("ready", flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            print(os.waitstatus_to_exitcode(os.waitpid(question["wait"], 0)[1]), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            os.setsid()
            handle = os.open(question["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            os._exit(status(question["start"], question["argv"]))


def status(what: str, argv: list[str]) -> int:
    """Run and return the exit status, as the interpreter would."""
    runs = {
        "stage": lambda: cli.run(partial(stages.embed.main, argv)),
        "scheduler": lambda: distributed.cli.dask_scheduler.main(argv, standalone_mode=False),
        "worker": lambda: distributed.cli.dask_worker.main(argv, standalone_mode=False),
    }
    try:
        runs[what]()
        return 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    main()
