import sys
from pathlib import Path

# pytest's importlib mode puts no folder on the path; docs/generate.py has modules beside it.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
