"""Pictures of LIBERO's scenes, to train a CLIP on: objects at random places, the robot in random poses, other light.

    python -m stages.scenes
    python -m stages.scenes --set scenes.units=10 --out /tmp/scenes.zarr

Writes data/scenes.zarr: pictures of both cameras, which object each pixel shows, and the state of the scene (see
pipeline/scenes/store.py). Stopped at any time and started again it goes on with the units that are left, which it keeps
in .scratch/scenes/, and ends in the same store. Not part of `dvc repro`.
"""

from pathlib import Path

from pipeline.files import exclusive, publish_directory, require_writable, restore_directory
from stages import cli

ROOM_BYTES = 6e6  # of a unit, as compressed


def main(argv: list[str] | None = None) -> None:
    """Take the pictures that params.yaml asks for."""
    parser = cli.parser(__doc__)
    parser.add_argument("--out", default="data/scenes.zarr", help="directory to write (default: %(default)s)")
    parser.add_argument("--scratch", default=".scratch/scenes", help="unfinished work (default: %(default)s)")
    args = parser.parse_args(argv)
    params = cli.settings(args)
    from pipeline.scenes import job, store

    out, name = Path(args.out), job.fingerprint(params.scenes, params.sim)
    work = Path(args.scratch).resolve() / name
    restore_directory(out)
    with exclusive(Path(args.scratch) / "lock", "taking of pictures"):
        if store.fingerprint_of(out) == name:
            print(f"{out}: up to date (fingerprint {name})")
            return
        require_writable(out.parent)
        require_writable(work, int(ROOM_BYTES * len(job.plan(params.scenes)[0])))
        took = job.take(params.scenes, params.sim, params.compute, work)
        publish_directory(work, out)
    print(f"{out}: {took['pictures']} pictures by each camera in {took['seconds']} s on {took['workers']} workers")


if __name__ == "__main__":
    cli.run(main)
