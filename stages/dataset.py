"""What the demonstrations of a suite look like: videos, actions against time, distributions, what was left out.

python -m stages.dataset libero_spatial                             # results/libero_spatial_demos.html
python -m stages.dataset libero_spatial --export lerobot OUT        # a LeRobotDataset v3 in the new directory OUT
"""

from pathlib import Path

from pipeline.errors import ConfigError
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
    parser.add_argument(
        "--export", nargs=2, metavar=("FORMAT", "OUT"), help="write them to a new directory instead; FORMAT: lerobot"
    )
    args = parser.parse_args(argv)
    if args.export and args.export[0] != "lerobot":
        parser.error(f"--export {args.export[0]}: FORMAT can be lerobot")
    params = cli.settings(args)
    if params.demos.source == "own":
        raise ConfigError("demos.source is own; this page, and the export, are of LIBERO's demonstrations")
    wanted, cameras = tasks(args.suite, params.data.tasks.get(args.suite)), cameras_of(params.demos)
    demos, quarantine = scan(Path(args.demos), args.suite, wanted, cameras)
    if args.export:
        from pipeline.data.libero_export import export_libero  # its libraries, and torch, take seconds to import
        from pipeline.embed.plan import check_order

        shift = params.embed.obs_shift
        check_order(shift, demos)
        episodes, frames = export_libero(demos, shift, params.train_flow.action, Path(args.export[1]))
        print(f"{args.export[1]}: {episodes} episodes, {frames} frames")
        return
    out = Path(args.out or f"results/{args.suite}_demos.html")
    write_atomic(out, dataset_page(args.suite, wanted, demos, quarantine, cameras))
    print(out)


if __name__ == "__main__":
    cli.run(main)
