"""Write the SBOM (CycloneDX 1.5) of what runs in production, without tests and tools of development: `make sbom`.

The same uv.lock gives the same bytes: what uv makes anew each time, a serial number and a time, follows from the lock.
"""

import hashlib
import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COMMAND = [
    *(str(ROOT / ".uv" / "bin" / "uv"), "export", "--frozen", "--all-packages", "--no-dev", "--quiet"),
    *("--format", "cyclonedx1.5", "--preview-features", "sbom-export"),
]


def settled(bom: dict[str, Any], lock: bytes) -> str:
    """The SBOM with what depends on nothing but the lock file."""
    digest = hashlib.sha256(lock).hexdigest()
    bom["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, digest)}"
    bom["metadata"].pop("timestamp", None)
    bom["metadata"].setdefault("properties", []).append({"name": "sendwhy:uv.lock:sha256", "value": digest})
    return json.dumps(bom, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main(out: str) -> None:
    told = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    text = settled(json.loads(told), (ROOT / "uv.lock").read_bytes())
    Path(out).write_text(text)
    print(f"{out}: {text.count('purl')} packages, sha256 {hashlib.sha256(text.encode()).hexdigest()}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "sbom.cdx.json")
