"""Write params.yaml: what `dvc repro` and every stage go by.

python -m pipeline.config compose                                        # quickstart, the default
python -m pipeline.config compose experiment=libero_spatial              # another option of a group
python -m pipeline.config compose train_flow.epochs=10 sim.seed=1        # single settings
python -m pipeline.config compose +eval_libero.conditions.light=0.5      # a new entry of a mapping
python -m pipeline.config compose --output -                             # print it, write nothing

`dvc exp run -S` takes the same overrides and composes the same. What Hydra refuses there it tells in words of its own:
compose it here to read what to write instead.
"""

import argparse
import sys
from pathlib import Path

from pipeline.config.compose import compose, groups, replaced
from pipeline.errors import ConfigError
from pipeline.files import write_atomic

CONFIGS = Path("configs")


def main(argv: list[str] | None = None) -> None:
    """Compose configs/ into a settings file, or to standard output with `--output -`."""
    options = "\n".join(f"  {name:14}{', '.join(options)}" for name, options in groups(CONFIGS).items())
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.config",
        description=__doc__,
        epilog=f"groups and their options:\n{options}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=["compose"])
    parser.add_argument("overrides", nargs="*", help="GROUP=OPTION or section.key=value")
    parser.add_argument("--output", default="params.yaml", help="file to write, - for standard output")
    args = parser.parse_intermixed_args(argv)
    text = compose(args.overrides, CONFIGS)
    for told in replaced(args.overrides, text, CONFIGS):
        print(f"note: {told}", file=sys.stderr)
    if args.output == "-":
        print(text, end="")
        return
    write_atomic(Path(args.output), text)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")
