"""Look at an embedding store.

python -m cache info   data/embeddings/libero_spatial.zarr     what it holds
python -m cache verify data/embeddings/libero_spatial.zarr     read all of it and check it; exit status 1 if damaged
python -m cache verify s3://bucket/libero_spatial.zarr         the same on object storage (see docs/store.md)
"""

import argparse
import json
import sys

import numpy as np

from cache.errors import StoreError
from cache.reader import Store, open_store
from cache.verify import verify


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m cache", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("info", "verify"))
    parser.add_argument("store", help="path or URL")
    args = parser.parse_args(argv)
    try:
        if args.command == "info":
            print(describe(open_store(args.store)))
            return
        problems = verify(args.store)
    except StoreError as error:
        sys.exit(f"error: {error}")
    for problem in problems:
        print(problem)
    if problems:
        sys.exit(f"error: {args.store}: {len(problems)} problem{'s' if len(problems) > 1 else ''}")
    print(f"{args.store}: sound")


def describe(store: Store) -> str:
    """Return what a store holds, as text."""
    lines = [
        store.location,
        f"fingerprint  {store.fingerprint}",
        f"rows         {store.rows} in {len(store.episodes)} episodes of {len(store.texts.instructions)} tasks",
        f"layout       {store.shard_rows} rows a shard, {store.attrs['chunk_rows']} rows a chunk",
    ]
    for name in store.fields:
        array = store.array(name)
        shape = (store.rows, *array.shape[1:])
        size = int(np.prod(shape)) * array.dtype.itemsize
        lines.append(f"  {name:24s} {array.dtype!s:8s} {shape}  {size / 2**20:.1f} MiB")
    lines += [f"  {task:3d}  {text}" for task, text in zip(store.texts.task_ids, store.texts.instructions, strict=True)]
    return "\n".join([*lines, "identity", json.dumps(store.identity, indent=2)])


if __name__ == "__main__":
    main()
