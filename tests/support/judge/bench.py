"""What the tests share with the benchmarks: the peer's environment, archives by the real archiver, and started servers."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks"

# In front for these imports alone: other modules there have names (`models`, `rows`, `run`) that must hide nobody's.
sys.path.insert(0, str(FOLDER))
try:
    import archiver as archiver
    import environments as environments
    import servers as servers
finally:
    sys.path.remove(str(FOLDER))
