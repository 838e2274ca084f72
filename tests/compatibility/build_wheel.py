"""Build the wheel that later versions are tested with: ``python tests/compatibility/build_wheel.py``.

It has a contribution of every kind, as ``hekaton new`` writes them for the present version of the plugin API, and is
committed once for each version of that. A wheel that is there is never built again.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from pathlib import Path

from hekaton.contributions import API_VERSION
from hekaton.scaffold import KINDS, chosen, distribution_files

WRITTEN = (2026, 1, 1, 0, 0, 0)
"""The time of every file in the wheel, so that it is the same whenever it is built."""


def main() -> int:
    series = API_VERSION.replace(".", "_")
    name = f"of_api_{series}"
    wheel = Path(__file__).with_name(f"hekaton_{name}-1.0-py3-none-any.whl")
    if wheel.exists():
        print(f"{wheel.name} is there already", file=sys.stderr)
        return 1
    words = [
        "model",
        name,
        *(word for kind in KINDS if kind != "model" for word in (kind, f"{kind}_{series}")),
    ]
    texts = distribution_files(chosen(words))
    files = {path.removeprefix("src/"): text for path, text in texts.items() if path.startswith("src/")} | {
        f"hekaton_{name}/run.toml": texts["run.toml"]
    }
    about = f"hekaton_{name}-1.0.dist-info"
    files |= {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: hekaton-{name.replace('_', '-')}\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: build_wheel\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": f"[hekaton]\n{name} = hekaton_{name}\n",
    }
    record = "".join(f"{path},{_digest(text)},{len(text.encode())}\n" for path, text in files.items())
    files[f"{about}/RECORD"] = f"{record}{about}/RECORD,,\n"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path, WRITTEN), text, zipfile.ZIP_DEFLATED)
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes")
    return 0


def _digest(text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    return f"sha256={digest}"


if __name__ == "__main__":
    sys.exit(main())
