"""What `make demo` runs: scikit-learn's scanned digits as a folder of PNGs, then the very commands
that one would type for one's own pictures. Under three minutes on two cores.
"""

import shutil
import subprocess
import sysconfig
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

DATA, RUN = Path("digits"), Path("runs/digits")


def write_pictures(folder: Path) -> None:
    """1,797 pictures of 8 x 8 pixels in `folder`/<digit>/."""
    digits = load_digits()
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(digit) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).round().astype("uint8")).save(path)


def run(*command: str) -> None:
    print(f"\n$ mbconv {' '.join(command)}", flush=True)
    subprocess.run([Path(sysconfig.get_path("scripts")) / "mbconv", *command], check=True)


def main() -> None:
    for old in (DATA, RUN):
        shutil.rmtree(old, ignore_errors=True)
    write_pictures(DATA)
    run("train", str(DATA), "--out", str(RUN), "--no-flip")
    import json

    test = json.loads((RUN / "data.json").read_text())["splits"]["test"]
    run("predict", str(RUN), *(str(DATA / name) for name in test[:: len(test) // 8]), "--top", "3")
    print(f"\nThe report: {(RUN / 'report.html').resolve()}")


if __name__ == "__main__":
    main()
