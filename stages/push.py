"""Put a policy with its model card into the Hugging Face hub, from where anyone loads it.

    python -m stages.push runs/flow/policy user/name                            # as hf://user/name
    python -m stages.push runs/flow/policy user/name --results results/flow     # with its success rates in the card
    python -m stages.push runs/flow/policy --results results/flow --card card.md    # the card alone, into a file

The token comes from HF_TOKEN or from `hf auth login`. A damaged bundle is refused, as are results of another policy.
The bundle itself stays as it is: only the uploaded card has the results.
"""

import argparse
from pathlib import Path

from pipeline.errors import AssetError, ConfigError
from pipeline.files import write_atomic
from pipeline.hub import upload
from stages import cli


def main(argv: list[str] | None = None) -> None:
    """Upload a bundle, or write its card."""
    args = arguments().parse_args(argv)
    if (args.card is None) == (args.repository is None):
        raise ConfigError("name either a repository, user/name, to upload to, or a file for the card: --card FILE")
    from pipeline.inference.card import card, results_of  # torch and open_clip take seconds to import
    from pipeline.policy.bundle import CARD, JSON, load_spec, weights_digest

    digest = weights_digest(args.policy)  # reads every file that is sealed
    spec = load_spec(args.policy)
    results = results_of(args.results, spec, digest) if args.results else None
    if args.card:
        write_atomic(args.card, card(spec, results, str(args.policy)))
        print(f"the model card: {args.card}")
        return
    text = card(spec, results, f"hf://{args.repository}")
    files = {name: args.policy / name for name in (JSON, *spec.files)} | {CARD: text.encode()}
    try:
        commit = upload(args.repository, files, f"Policy with weights {digest[:16]}", args.private)
    except (OSError, ValueError) as error:
        raise AssetError(
            f"{args.repository}: cannot upload: {' '.join(str(error).split())[:400]}. The hub must be reachable, and "
            "HF_TOKEN a token that may write to user/name"
        ) from error
    print(f"hf://{args.repository}@{commit}")


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.parser(__doc__, params=False)
    parser.add_argument("policy", type=Path, help="bundle, such as runs/flow/policy")
    parser.add_argument("repository", nargs="?", help="user/name in the hub; made if it is not there")
    parser.add_argument("--results", type=Path, help="of stages.eval_libero, for the card, such as results/flow")
    parser.add_argument("--private", action="store_true", help="a repository that is made is for its owner alone")
    parser.add_argument("--card", type=Path, metavar="FILE", help="write the model card there and upload nothing")
    return parser


if __name__ == "__main__":
    cli.run(main)
