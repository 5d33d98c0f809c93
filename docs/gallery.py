"""Run the examples, and keep what the gallery shows of them.

    pip install -e ".[examples]"
    python docs/gallery.py                      all that are in examples/
    python docs/gallery.py population           some
    python docs/gallery.py --from FOLDER        of runs that were made elsewhere

Each example runs in a temporary folder, with the style in matplotlibrc.
docs/gallery/NAME.txt gets the seconds and the versions, then what was printed;
docs/pictures/NAME.webp gets the picture that it drew.
A folder for --from has NAME.txt, whose first line begins with the seconds and whose
other lines are what was printed, and NAME.png where the example draws.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parent
EXAMPLES = DOCS.parent / "examples"


def run(name: str, folder: Path) -> tuple[float, str]:
    """Run an example in a folder: its seconds, and what it printed."""
    print(f"{name} ...", flush=True)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        cwd=folder,
        env=os.environ | {"MATPLOTLIBRC": str(DOCS.parent / "matplotlibrc")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return time.perf_counter() - start, done.stdout


def made_elsewhere(path: Path) -> tuple[float, str]:
    """The seconds and the text of a run that a file tells of."""
    first, _, printed = path.read_text(encoding="utf-8").partition("\n")
    return float(re.findall(r"[\d.]+", first)[0]), printed


def keep(name: str, seconds: float, printed: str, picture: Path | None) -> None:
    """Write what the gallery shows."""
    versions = [f"{x} {importlib.metadata.version(x)}" for x in ("jax", "optax")]
    first = f"{seconds:.0f} s, {', '.join(versions)}"
    text = DOCS / "gallery" / f"{name}.txt"
    text.write_text("\n".join([first, printed.strip("\n"), ""]), encoding="utf-8")
    if picture:
        image = Image.open(picture).convert("RGB")
        image.save(DOCS / "pictures" / f"{name}.webp", lossless=True, method=6)


def main() -> None:
    """Run or read, and keep."""
    parser = argparse.ArgumentParser(description="See the top of this file.")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--from", dest="folder", type=Path)
    args = parser.parse_args()
    found = args.folder.glob("*.txt") if args.folder else EXAMPLES.glob("*.py")
    for name in args.names or sorted(path.stem for path in found):
        with tempfile.TemporaryDirectory() as temporary:
            if args.folder:
                seconds, printed = made_elsewhere(args.folder / f"{name}.txt")
                pictures = [*args.folder.glob(f"{name}.png")]
            else:
                seconds, printed = run(name, Path(temporary))
                pictures = [*Path(temporary).glob("*.png")]
            keep(name, seconds, printed, pictures[0] if pictures else None)


if __name__ == "__main__":
    main()
