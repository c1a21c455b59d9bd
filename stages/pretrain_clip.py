"""Train the project's own small CLIP on the pictures of `python -m stages.scenes`.

    accelerate launch -m stages.pretrain_clip
    accelerate launch -m stages.pretrain_clip --out pipeline/encode/models    # puts the weights where they are used

With pretrain_clip.pretrained it goes on from weights that it made; with lock_image only their text tower does.
Reads data/scenes.zarr; writes weights, recipe and curves.csv to runs/clip. Stopped at any time and started again it
goes on from its last checkpoint in .scratch/clip/. Not part of `dvc repro`.
"""

from pathlib import Path

from pipeline.files import require_writable
from stages import cli


def main(argv: list[str] | None = None) -> None:
    """Train by params.yaml."""
    parser = cli.parser(__doc__)
    parser.add_argument("--scenes", default="data/scenes.zarr", help="pictures to read (default: %(default)s)")
    parser.add_argument("--out", default="runs/clip", help="directory to write (default: %(default)s)")
    parser.add_argument("--scratch", default=".scratch/clip", help="checkpoints (default: %(default)s)")
    args = parser.parse_args(argv)
    params = cli.settings(args)
    from pipeline.pretrain.job import run

    out, scratch = Path(args.out), Path(args.scratch)
    require_writable(out)
    require_writable(scratch)
    last = run(params.pretrain_clip, Path(args.scenes), scratch, out)
    print(f"{out}: " + ", ".join(f"{name} {value:g}" for name, value in last.items()))


if __name__ == "__main__":
    cli.run(main)
