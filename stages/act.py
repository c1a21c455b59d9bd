"""Let a policy act on files: pictures, a demonstration, or a video with the robot's state.

    python -m stages.act --demo data/demos/libero_spatial/TASK_demo.hdf5 --step 40 --samples 5 --plot chunk.html
    python -m stages.act --demo FILE.hdf5 --all --plot whole.html       # a new chunk every n_action_steps
    python -m stages.act --image agentview=front.png eye_in_hand=hand.jpg --state state.json --instruction "open it"
    python -m stages.act --video agentview=front.mp4 eye_in_hand=hand.mp4 --state state.npz --instruction "open it"
    python -m stages.act --demo ../my_robot --name episode_000003       # of a policy for another robot: its data set
    python -m stages.act --policy hf://user/name --describe             # what it takes: shapes, units, frames, signs

Prints the action chunk as a table: a row for each control step, in the environment's units. --state is JSON or .npz of
each signal: its numbers for pictures, a row of them for each frame of a video. With --plot the chunks are drawn over
the true actions of the demonstration, as an HTML page that needs nothing else. Pictures and videos are upright;
pictures are PNG or JPEG, depth 16-bit PNG in millimetres.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import ConfigError, DataError
from pipeline.files import write_atomic
from stages import cli

if TYPE_CHECKING:
    from pipeline.inference.policy import Policy
    from pipeline.inference.recordings import Recording


def main(argv: list[str] | None = None) -> None:
    """Show what a policy makes of files."""
    args = arguments().parse_args(argv)
    sources = [source for source in (args.image, args.video, args.demo) if source]
    if len(sources) != (0 if args.describe else 1):
        raise ConfigError("name one source of observations: --image, --video or --demo; or ask for --describe alone")
    if args.plot and args.plot.suffix != ".html":
        raise ConfigError(f"--plot {args.plot}: an HTML page is written. Name a file that ends in .html")
    if args.samples < 1:
        raise ConfigError(f"--samples {args.samples}: at least 1")
    from pipeline.inference import chunks  # torch and open_clip take seconds to import
    from pipeline.inference.policy import Policy

    policy = Policy.load(args.policy, args.device, encoder_weights=args.encoder_weights)
    if args.describe:
        print(json.dumps(policy.describe(), indent=2, ensure_ascii=False))
        return
    recording = opened(args, policy)
    instruction = args.instruction or recording.instruction
    if not instruction:
        raise ConfigError("--instruction: the files do not say what to do, so tell it")
    step = 0 if args.all else args.step
    if not 0 <= step < len(recording):
        raise DataError(f"--step {step}: there are the steps 0 to {len(recording) - 1}")
    if args.all:
        made = chunks.carried_out(policy, recording, instruction, args.samples, args.seed)
    else:
        made = chunks.chunk_at(policy, recording, step, instruction, args.samples, args.seed)
    true = chunks.following(recording, step, made.shape[1])
    names = policy.describe()["outputs"]["actions"]["names"]
    print(f"“{instruction}”, after step {step}: {made.shape[1]} actions, the mean of {len(made)} samples")
    print(chunks.table(made.mean(0), names))
    if len(made) > 1:
        print("standard deviation over the samples")
        print(chunks.table(made.std(0), names))
    if true is not None and (told := chunks.error_table(made, true, names)):
        print(f"mean absolute error against the demonstration\n{told}")
    if args.plot:
        source = f"{args.demo.name} {recording.name}" if args.demo else f"the observations given to {args.policy}"
        write_atomic(args.plot, page(policy.describe(), made, true, instruction, step, source))
        print(f"the plot: {args.plot}")


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.parser(__doc__, params=False)
    parser.add_argument("--policy", default="runs/flow/policy", help="bundle, or hf://user/name (default: %(default)s)")
    parser.add_argument("--image", nargs="+", metavar="CAMERA=FILE", help="a picture of each camera")
    parser.add_argument("--video", nargs="+", metavar="CAMERA=FILE", help="a video of each camera")
    parser.add_argument(
        "--demo", type=Path, metavar="FILE", help="demonstrations as the policy's: LIBERO's HDF5, or own data"
    )
    parser.add_argument("--name", help="which of them (default: demo_0; of own data the first)")
    parser.add_argument("--state", type=Path, metavar="FILE", help="the signals, for --image and --video")
    parser.add_argument("--step", type=int, default=0, help="observation to act on (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="act on all of them, every n_action_steps")
    parser.add_argument("--instruction", help="what to do (default: what the demonstration says)")
    parser.add_argument("--samples", type=int, default=1, help="chunks, from as many noises (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE.html", help="draw the actions there")
    parser.add_argument("--device", help="cpu, cuda, cuda:1... (default: the GPU if there is one)")
    parser.add_argument("--encoder-weights", metavar="FILE", help="of the encoder, where they are no tag of open_clip")
    parser.add_argument("--describe", action="store_true", help="print what the policy takes and gives, as JSON")
    return parser


def opened(args: argparse.Namespace, policy: "Policy") -> "Recording":
    """Return the observations that the command line names."""
    from pipeline.inference import recordings

    if args.demo:
        return recordings.demonstration(args.demo, args.name, policy.spec)
    if args.image:
        return recordings.pictures(by_camera(args.image), args.state)
    return recordings.videos(by_camera(args.video), args.state)


def by_camera(given: list[str]) -> dict[str, Path]:
    """Return the files that CAMERA=FILE arguments name."""
    pairs = [text.partition("=") for text in given]
    for text, (_, equals, _) in zip(given, pairs, strict=True):
        if not equals:
            raise ConfigError(f"{text}: not CAMERA=FILE, such as agentview=front.png")
    return {camera: Path(file) for camera, _, file in pairs}


def page(
    described: dict[str, Any], made: np.ndarray, true: np.ndarray | None, instruction: str, step: int, source: str
) -> str:
    """Return a page with a chart for each component of the actions."""
    from pipeline.inference.describe import action_ranges
    from pipeline.report.charts import Series, line_chart
    from pipeline.report.html import document, el

    steps, actions = list(range(made.shape[1])), described["outputs"]["actions"]
    limits = action_ranges(actions)

    def chart(i: int) -> Any:
        lines = [Series(f"sample {k + 1}", steps, chunk[:, i].tolist(), "a") for k, chunk in enumerate(made)]
        if true is not None:
            known = np.flatnonzero(np.isfinite(true[:, i])).tolist()
            lines.append(Series("demonstrated", known, true[known, i].tolist(), "b"))
        return line_chart(actions["names"][i], f"control steps after step {step}", lines, limits=limits[i])

    charts = el("div", [chart(i) for i in range(made.shape[2])], class_="charts")
    words = f"“{instruction}”: {len(made)} samples, after step {step} of {source}"
    return document("Actions of the policy", words, [("Components of the actions", charts)])


if __name__ == "__main__":
    cli.run(main)
