"""Where the repository lies, and the data beside it that some tests want."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared/data"
EXPERIMENTS = ROOT / "experiments"
