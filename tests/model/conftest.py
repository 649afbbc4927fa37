"""Make the test helpers of this folder importable, here and in spawned ranks."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
