"""Where a copy of LIBERO's own assets lies, for the tests that need one; they skip where there is none."""

import os
from pathlib import Path

OFFICIAL_ASSETS = Path(os.environ.get("LIBERO_ASSETS") or Path(__file__).parents[2] / "shared" / "libero-assets")
