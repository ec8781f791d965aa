import sys
from pathlib import Path

# pytest's importlib mode puts no folder on the path, and the webhooks are shared by several test files.
sys.path.insert(0, str(Path(__file__).parent))
