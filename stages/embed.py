"""Stage one: frozen CLIP over all frames and instructions, once, into a Zarr store.

    python -m stages.embed                            # every suite of params.yaml
    python -m stages.embed --suite libero_spatial     # one of them
    python -m stages.embed --repair                   # damaged shards, made anew
    python -m stages.embed --verify                   # check the stores, and encode a sample of rows once more

Reads data/demos/<suite>/, writes data/embeddings/<suite>.zarr (see cache/schema.py). A store that is there and is of
the same encoder, settings and demonstrations is left alone. Stopped at any time, also by kill -9, and started again it
goes on with the shards that are left, which it keeps in .scratch/embed/, and ends in the same bytes. Shards that did
not change since the last build are taken over. The store holds nothing of time or machine; what the build took goes to
.scratch/embed/<suite>.json.
"""

import sys
from pathlib import Path

from stages import cli


def main(argv: list[str] | None = None) -> None:
    """Embed what params.yaml asks for."""
    parser = cli.parser(__doc__)
    parser.add_argument("--suite", help="only this one (default: all of data.suites)")
    parser.add_argument("--demos", default="data/demos", help="directory to read (default: %(default)s)")
    parser.add_argument("--out", default="data/embeddings", help="directory to write (default: %(default)s)")
    parser.add_argument("--scratch", default=".scratch/embed", help="unfinished work (default: %(default)s)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--repair", action="store_true", help="make damaged shards of finished stores anew, no others")
    mode.add_argument("--verify", action="store_true", help="build nothing; exit status 1 if a store is damaged")
    parser.add_argument("--sample", type=int, default=256, help="--verify: rows to encode again (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="--verify: of the choice of rows (default: %(default)s)")
    args = parser.parse_args(argv)
    params = cli.settings(args)
    from pipeline.data.demos import tasks
    from pipeline.embed.audit import audit  # torch and open_clip take seconds to import
    from pipeline.embed.job import embed, repair

    problems: list[str] = []
    for suite in (args.suite,) if args.suite else params.data.suites:
        chosen = tasks(Path(args.demos), suite, params.data.tasks.get(suite))
        demos, target, scratch = Path(args.demos), Path(args.out) / f"{suite}.zarr", Path(args.scratch) / suite
        if args.verify:
            summary, found = audit(params.embed, chosen, demos, target, args.sample, args.seed)
            problems += found
        else:
            work = repair if args.repair else embed
            summary = work(params.embed, params.compute, chosen, demos, target, scratch)
        print(summary)
    if problems:
        sys.exit("\n".join([*problems, f"error: {len(problems)} problem(s)"]))


if __name__ == "__main__":
    cli.run(main)
