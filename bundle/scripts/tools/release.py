"""What a release is made of: ``python bundle/scripts/tools/release.py`` makes the zip for `monai.bundle download`.

With ``--huggingface_url`` it also makes the folder of a Hugging Face repository. The Model Zoo lists README.md, LICENSE
and metadata.json of its root.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
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

FRONT_MATTER = """---
license: mit
library_name: monai
tags: [monai, medical, mri, brain, image-segmentation, anomaly-detection]
pipeline_tag: image-segmentation
---

"""


def files_of(bundle: Path) -> list[Path]:
    """The files of a bundle that are released, in the order of their names.

    Raises:
        FileNotFoundError: When the bundle lacks a file that the Model Zoo asks for.
    """
    for name in REQUIRED:
        if not (bundle / name).is_file():
            raise FileNotFoundError(f"A release needs {name}, but {bundle} has none: restore it, or train the model.")
    return sorted(path for pattern in CONTENT for path in bundle.glob(pattern) if path.is_file())


def make_release(bundle: Path, output_dir: Path) -> Path:
    """Pack a bundle under its release name, so that the same files always give the same bytes.

    Files are stored in the order of their names, uncompressed (weights and pictures hardly shrink), all with the first
    date that a zip file knows.

    Args:
        bundle: Folder of the bundle.
        output_dir: Where ``NAME_v<version>.zip`` goes; one that a release wrote is replaced.

    Returns:
        The zip file.

    Raises:
        ValueError: When a file of that name is there that no release wrote.
        FileNotFoundError: When the bundle lacks a file that the Model Zoo asks for.
    """
    files = files_of(bundle)
    version = json.loads((bundle / "configs" / "metadata.json").read_text())["version"]
    release = output_dir / f"{NAME}_v{version}.zip"
    with atomic(release) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for path in files:
            entry = zipfile.ZipInfo(f"{NAME}/{path.relative_to(bundle).as_posix()}")
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, path.read_bytes())
    return release


def make_hugging_face(bundle: Path, output_dir: Path, url: str) -> Path:
    """Write the folder of a Hugging Face repository: the bundle, and the model card, license and metadata at its root.

    Args:
        bundle: Folder of the bundle.
        output_dir: Where ``NAME_hugging_face`` goes; a file that a release wrote is replaced.
        url: Of the repository, for ``metadata.json``.

    Returns:
        The folder.

    Raises:
        ValueError: When ``url`` is none of Hugging Face, or a file is in the way that no release wrote.
        FileNotFoundError: When the bundle lacks a file that the Model Zoo asks for.
    """
    if not re.fullmatch(r"https://huggingface\.co/[\w.-]+/[\w.-]+", url):
        raise ValueError(f"--huggingface_url must be https://huggingface.co/OWNER/NAME, got {url}.")
    folder = output_dir / f"{NAME}_hugging_face"
    content = {path.relative_to(bundle).as_posix(): path.read_bytes() for path in files_of(bundle)}
    card = re.sub(r"\]\((?![a-z]+:|#)", "](docs/", content["docs/README.md"].decode())  # its relative links
    metadata = {**json.loads(content["configs/metadata.json"]), "huggingface_url": url}
    content["README.md"] = (FRONT_MATTER + card).encode()
    content["metadata.json"] = (json.dumps(metadata, indent=4) + "\n").encode()
    for name, data in content.items():
        with atomic(folder / name, output_dir) as temporary:
            temporary.write_bytes(data)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the release, and print its SHA-256."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", default="dist", help="where the zip goes (default: ./dist)")
    parser.add_argument("--huggingface_url", help="write the folder of this repository too")
    options = parser.parse_args(arguments)
    report_errors()
    output_dir = check_writable(options.output_dir)
    release = make_release(BUNDLE, output_dir)
    print(f"{hashlib.sha256(release.read_bytes()).hexdigest()}  {release}")
    if options.huggingface_url:
        print(f"Folder of the repository: {make_hugging_face(BUNDLE, output_dir, options.huggingface_url)}")


if __name__ == "__main__":
    main()
