"""What the encoder sees alike in a suite's demonstrations: nearest frames by picture and sentence, patch tokens.

    python -m stages.features libero_spatial      # results/features.html
    python -m stages.features libero_spatial --sentences 'the gripper is open' 'a plate'

Reads data/embeddings and data/demos, and loads the encoder for the sentences.
"""

from pathlib import Path
from typing import Any

from pipeline.encode.settings import EncoderParams
from pipeline.errors import DataError
from pipeline.files import write_atomic
from stages import cli

SENTENCES = ("the gripper holds the black bowl", "the gripper is above the plate", "the black bowl is on the plate")


def main(argv: list[str] | None = None) -> None:
    """Write the page."""
    parser = cli.parser(__doc__)
    parser.add_argument("suite", help="whose features to show, such as libero_spatial")
    parser.add_argument("--sentences", nargs="*", default=list(SENTENCES), help="to look for (default: %(default)s)")
    parser.add_argument("--embeddings", default="data/embeddings", help="where the stores are (default: %(default)s)")
    parser.add_argument("--demos", default="data/demos", help="that they were made of (default: %(default)s)")
    parser.add_argument("--out", default="results/features.html", help="the page (default: %(default)s)")
    args = parser.parse_args(argv)
    params = cli.settings(args)
    from cache import open_store
    from pipeline.encode.clip import ClipEncoder  # torch takes seconds to import
    from pipeline.libero.demos.read import scan
    from pipeline.libero.suites import tasks
    from pipeline.report.features import features_page

    store = open_store(Path(args.embeddings) / f"{args.suite}.zarr")
    camera = params.embed.cameras[0]
    demos, _ = scan(Path(args.demos), args.suite, tasks(args.suite, params.data.tasks.get(args.suite)), (camera,))
    said = {}
    check_encoder(store.identity["encoder"], params.embed.encoder, store.location)
    if args.sentences:
        said = dict(zip(args.sentences, ClipEncoder(params.embed.encoder).text(args.sentences), strict=True))
    write_atomic(Path(args.out), features_page(store, demos, said, camera))
    print(args.out)


def check_encoder(stored: dict[str, Any], settings: EncoderParams, store: str) -> None:
    """Refuse to look for sentences with another encoder than the frames were encoded by. Raises DataError."""
    from cache.plan import differences

    asked = settings.identity
    if other := differences({name: stored.get(name) for name in asked}, asked):
        raise DataError(f"{store}: embed.encoder is another than the store's: {'; '.join(other)}. Set it back")


if __name__ == "__main__":
    cli.run(main)
