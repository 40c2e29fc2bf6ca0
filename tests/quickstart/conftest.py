import sys
from pathlib import Path

# The quickstart is an example, not a package: its programs are found as a user runs them, in their own folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "quickstart"))
