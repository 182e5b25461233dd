"""The zip that `python -m monai.bundle download` takes: ``python bundle/scripts/tools/release.py`` makes it."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

BUNDLE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(BUNDLE))

from scripts.common.errors import report_errors  # noqa: E402
from scripts.common.outputs import atomic, check_writable  # noqa: E402

NAME = "brain_mri_anomaly_segmentation"
ROOMS = ("method", "data", "training", "inference", "evaluation", "common")  # of scripts; tools stay behind
SCRIPTS = ("scripts/__init__.py", *(f"scripts/{room}/*.py" for room in ROOMS))
CONTENT = ("LICENSE", "configs/*.json", "configs/logging.conf", "docs/*", "models/model.pt", *SCRIPTS)
REQUIRED = ("LICENSE", "configs/metadata.json", "configs/inference.json", "docs/README.md", "models/model.pt")
OLDEST_DATE = (1980, 1, 1, 0, 0, 0)


def make_release(bundle: Path, output_dir: Path) -> Path:
    """Pack a bundle under its release name, so that the same files always give the same bytes.

    Files are stored in the order of their names, uncompressed (weights and pictures hardly shrink), all with one date.

    Args:
        bundle: Folder of the bundle.
        output_dir: Where ``NAME_v<version>.zip`` goes; one that a release wrote is replaced.

    Returns:
        The zip file.

    Raises:
        ValueError: When a file of that name is there that no release wrote.
        FileNotFoundError: When the bundle lacks a file that the Model Zoo asks for.
    """
    for name in REQUIRED:
        if not (bundle / name).is_file():
            raise FileNotFoundError(f"A release needs {name}, but {bundle} has none: restore it, or train the model.")
    version = json.loads((bundle / "configs" / "metadata.json").read_text())["version"]
    files = sorted(path for pattern in CONTENT for path in bundle.glob(pattern) if path.is_file())
    release = output_dir / f"{NAME}_v{version}.zip"
    with atomic(release) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for path in files:
            entry = zipfile.ZipInfo(f"{NAME}/{path.relative_to(bundle).as_posix()}", OLDEST_DATE)
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, path.read_bytes())
    return release


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the release and print its SHA-256."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", default="dist", help="where the zip goes (default: ./dist)")
    options = parser.parse_args(arguments)
    report_errors()
    release = make_release(BUNDLE, check_writable(options.output_dir))
    print(f"{hashlib.sha256(release.read_bytes()).hexdigest()}  {release}")


if __name__ == "__main__":
    main()
