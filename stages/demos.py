"""Stage zero: demonstrations in LIBERO's HDF5 layout, from where `demos.source` in params.yaml says.

    python -m stages.demos                            # every suite of params.yaml
    python -m stages.demos --suite libero_spatial     # one of them
    python -m stages.demos --list                     # the tasks, and what is there already

scripted  an expert that sees the simulator's state records them here (libero_spatial).
path      the files below demos.path are checked and linked; nothing is copied or changed.
own       any robot's data set in demos.path, LeRobot's format or HDF5, by demos.keys; likewise.
official  LIBERO's own are downloaded into the Hugging Face cache, checked and linked.

Writes data/demos/<suite>/<task>_demo.hdf5 and index.json (what is there, what is left out and why), and beside the
directory <suite>.provenance.json. Stopped at any time and started again it goes on with the episodes that are left,
which it keeps in .scratch/demos/, and ends in the same files.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.config import Params
from pipeline.files import exclusive, publish_directory, require_writable, restore_directory, write_atomic
from pipeline.libero.demos import collect, directory, download
from pipeline.libero.demos.layout import INDEX, cameras_of
from pipeline.libero.demos.link import link
from pipeline.libero.demos.read import scan
from pipeline.libero.suites import Task, tasks
from pipeline.provenance import provenance
from stages import cli


def main(argv: list[str] | None = None) -> None:
    """Make the demonstrations that params.yaml asks for."""
    parser = cli.parser(__doc__)
    parser.add_argument("--suite", help="only this one (default: all of data.suites)")
    parser.add_argument("--list", action="store_true", help="show the tasks and what is there, and stop")
    parser.add_argument("--out", default="data/demos", help="directory to write (default: %(default)s)")
    parser.add_argument("--scratch", default=".scratch/demos", help="unfinished work (default: %(default)s)")
    args = parser.parse_args(argv)
    params = cli.settings(args)
    suites = (args.suite,) if args.suite else params.data.suites
    for suite in suites:
        if params.demos.source == "own":
            own(params, suite, Path(args.out), Path(args.scratch), args.list)
            continue
        chosen = tasks(suite, params.data.tasks.get(suite))
        if args.list:
            print(directory.listing(Path(args.out) / suite, chosen))
        else:
            with exclusive(Path(args.scratch) / f"{suite}.lock", "recording"):
                make(params, suite, chosen, Path(args.out), Path(args.scratch))


def own(params: Params, suite: str, out: Path, scratch: Path, listing: bool) -> None:
    """Bring data of one's own into `<out>/<suite>`, whole or not at all; or, with `listing`, show what there is."""
    from pipeline.data import place  # its libraries take a second to import

    if listing:
        print(place.listing(params.demos, suite))
        return
    target, work = out / suite, scratch.resolve() / f"{suite}.own"
    with exclusive(scratch / f"{suite}.lock", "recording"):
        restore_directory(target)
        directory.refuse_foreign(target)
        require_writable(out)
        require_writable(scratch)
        index = place.place(params.demos, suite, params.data.tasks.get(suite), work, target)
        publish_directory(work, target)
        record = {"demos": asdict(params.demos), "provenance": provenance()}
        write_atomic(out / f"{suite}.provenance.json", json.dumps(record, indent=1) + "\n")
    print(directory.headline(index, {}))
    print(f"files, and what was left out: {target}")


def make(params: Params, suite: str, chosen: Sequence[Task], out: Path, scratch: Path) -> None:
    """Bring the demonstrations of one suite into `<out>/<suite>`, whole or not at all."""
    source, target = params.demos.source, out / suite
    restore_directory(target)
    fingerprint = collect.fingerprint(suite, chosen, params.sim, params.demos)
    if source == "scripted" and directory.is_current(target, chosen, fingerprint):
        print(f"{target}: up to date (fingerprint {fingerprint})")
        return
    directory.refuse_foreign(target)
    require_writable(out)
    require_writable(scratch)
    work = scratch.resolve() / suite / fingerprint
    took = {}
    if source == "scripted":
        took = collect.collect(chosen, params.sim, params.demos, params.compute, work)
    else:
        link(params.demos, chosen, work, target)
    demos, quarantine = scan(work, suite, chosen, cameras_of(params.demos))
    directory.refuse_empty(chosen, demos, quarantine)
    index = {"fingerprint": fingerprint, **directory.describe(params.demos, suite, chosen, demos, quarantine)}
    (work / suite / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    publish_directory(work / suite, target)
    record = {"demos": asdict(params.demos), "sim": asdict(params.sim), "took": took, "provenance": provenance()}
    if source == "official":
        record["hub"] = {"repository": download.REPOSITORY, "commit": download.REVISION}
    write_atomic(out / f"{suite}.provenance.json", json.dumps(record, indent=1) + "\n")
    shutil.rmtree(work.parent)
    print(directory.headline(index, took))
    print(f"files, and what was left out: {target}")


if __name__ == "__main__":
    cli.run(main)
