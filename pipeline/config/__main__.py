"""Write params.yaml: python -m pipeline.config compose experiment=libero_spatial [train_flow.epochs=10 ...]"""

import argparse
import sys
from pathlib import Path

from pipeline.config.compose import compose
from pipeline.errors import ConfigError
from pipeline.files import write_atomic


def main(argv: list[str] | None = None) -> None:
    """Compose configs/ into a settings file, or to standard output with `--output -`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.config", description=__doc__)
    parser.add_argument("command", choices=["compose"])
    parser.add_argument("overrides", nargs="*", help="Hydra overrides: group=option or section.key=value")
    parser.add_argument("--output", default="params.yaml", help="file to write, - for standard output")
    args = parser.parse_intermixed_args(argv)
    text = compose(args.overrides)
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
