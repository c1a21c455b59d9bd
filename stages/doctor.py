"""Tell what this machine has of what the pipeline needs, and the remedy for what it lacks.

    make doctor
    python -m stages.doctor

Looks at Python, packages, LIBERO's files, OpenGL, GPU and driver, memory, disk and the Hugging Face hub. The exit
status is 1 if the quickstart cannot run here.
"""

import sys

from pipeline.machine import examine
from stages import cli

SIGNS = {"ok": "ok", "warning": "!", "error": "MISSING"}


def main(argv: list[str] | None = None) -> None:
    """Print a line for each thing; exit with status 1 if one is an error."""
    cli.parser(__doc__, params=False).parse_args(argv)
    errors = 0
    for finding in examine():
        errors += finding.status == "error"
        print(f"{SIGNS[finding.status]:8}{finding.what:26}{finding.found}", flush=True)
        if finding.remedy:
            print(f"{'':34}-> {finding.remedy}", flush=True)
    print("The quickstart can run here." if not errors else "The quickstart cannot run here yet.")
    if errors:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
