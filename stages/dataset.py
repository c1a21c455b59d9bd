"""What the demonstrations of a suite look like: videos, actions against time, distributions, what was left out.

python -m stages.dataset libero_spatial      # results/libero_spatial_demos.html
"""

from pathlib import Path

from pipeline.files import write_atomic
from pipeline.libero.demos.layout import cameras_of
from pipeline.libero.demos.read import scan
from pipeline.libero.suites import tasks
from pipeline.report.dataset import dataset_page
from stages import cli


def main(argv: list[str] | None = None) -> None:
    """Write the page."""
    parser = cli.parser(__doc__)
    parser.add_argument("suite", help="whose demonstrations to show, such as libero_spatial")
    parser.add_argument("--demos", default="data/demos", help="where they are (default: %(default)s)")
    parser.add_argument("--out", help="the page (default: results/SUITE_demos.html)")
    args = parser.parse_args(argv)
    params = cli.settings(args)
    wanted, cameras = tasks(args.suite, params.data.tasks.get(args.suite)), cameras_of(params.demos)
    demos, quarantine = scan(Path(args.demos), args.suite, wanted, cameras)
    out = Path(args.out or f"results/{args.suite}_demos.html")
    write_atomic(out, dataset_page(args.suite, wanted, demos, quarantine, cameras))
    print(out)


if __name__ == "__main__":
    cli.run(main)
