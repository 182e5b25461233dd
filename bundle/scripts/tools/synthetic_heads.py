"""Scans painted from FreeSurfer label maps: ``python bundle/scripts/tools/synthetic_heads.py --label_maps_dir MAPS``.

Anyone with label maps can train and test without a single scan. The scans that are for testing have lesions. The folder
follows the convention of BraTS, so every step of the bundle reads it (with ``--brain_mask brain``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

BUNDLE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(BUNDLE))

from scripts.common.errors import report_errors  # noqa: E402
from scripts.common.outputs import atomic, check_outputs, check_writable, write_csv  # noqa: E402
from scripts.data.dataset import synthetic_scans  # noqa: E402
from scripts.data.label_maps import CONTRASTS, RandLabelToImaged, make_head  # noqa: E402
from scripts.data.made_lesions import PLACES, add_lesions  # noqa: E402
from scripts.tools.phantoms import SPLITS, write_splits  # noqa: E402

GRAY_LEVELS = 500  # of white matter
LESION_ML = (1.0, 100.0)  # smallest and largest load
MOST_LESIONS = 15
CONTRAST = (1.5, 6.0)  # of lesions, in deviations of white matter
COLUMNS = ("case", "split", "label_map", "lesion_ml", "contrast", "lesions")


def write_head(
    scan: Mapping[str, Any], output_dir: Path, transform: RandLabelToImaged, with_lesions: bool
) -> dict[str, object]:
    """Write the files of one head, ``NAME/NAME_<contrast>``, ``_seg`` and ``_brain``.

    Args:
        scan: As `synthetic_scans` lists it.
        output_dir: Folder of the data set.
        transform: Paints the head.
        with_lesions: Add lesions of a drawn size, number, place and contrast.

    Returns:
        Its row in the table of heads, without its split.
    """
    name, random = scan["case"], np.random.default_rng(scan["seed"])
    made = make_head(scan["label_map"], scan["seed"], transform)
    image, brain, labels = (made[key][0].numpy() for key in ("image", "brain_mask", "label_map"))
    lesion, contrast, number = np.zeros(image.shape, bool), 0.0, 0
    if with_lesions:
        number, contrast = int(random.integers(1, MOST_LESIONS + 1)), float(random.uniform(*CONTRAST))
        load = float(np.exp(random.uniform(*np.log(LESION_ML))))
        image, lesion = add_lesions(image, brain, labels, random, load, number, contrast, PLACES)
    levels = np.clip(np.round(image * GRAY_LEVELS), 1, np.iinfo(np.int16).max).astype(np.int16)
    for key, voxels in {transform.contrast: levels * brain, "seg": lesion, "brain": brain}.items():
        kind = np.int16 if key == transform.contrast else np.uint8
        with atomic(output_dir / name / f"{name}_{key}.nii.gz") as temporary:
            nib.save(nib.Nifti1Image(voxels.astype(kind), made["image"].affine.numpy()), temporary)
    source, ml = Path(scan["label_map"]).name, round(float(lesion.sum()) / 1000, 3)
    return {"case": name, "label_map": source, "lesion_ml": ml, "contrast": round(contrast, 2), "lesions": number}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make volumes of all label maps of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--label_maps_dir", required=True, help="FreeSurfer label maps (NIfTI, 1 mm), one for each head"
    )
    parser.add_argument("--output_dir", default="synthetic_heads", help="where to write (default: ./synthetic_heads)")
    parser.add_argument("--contrast", choices=CONTRASTS, default="flair", help="of the scans (default: flair)")
    parser.add_argument("--volumes", type=int, default=4, help="of each head, every one drawn anew (default: 4)")
    parser.add_argument("--validation", type=int, default=2, help="heads to validate on (default: 2)")
    parser.add_argument("--testing", type=int, default=4, help="heads to test on, with lesions (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    options = parser.parse_args(arguments)
    report_errors()
    numbers = (options.volumes, options.validation, options.testing, options.seed)
    scans = {split: synthetic_scans(options.label_maps_dir, split, *numbers) for split in SPLITS}
    output = check_writable(options.output_dir)
    check_outputs([output / "synthetic_heads.csv"])
    write_splits(output, {split: [scan["case"] for scan in found] for split, found in scans.items()})
    transform = RandLabelToImaged(contrast=options.contrast)
    rows = [
        {"split": split, **write_head(scan, output, transform, with_lesions=split == "testing")}
        for split, found in scans.items()
        for scan in tqdm(found, f"{split} heads", unit="volume")
    ]
    write_csv(output / "synthetic_heads.csv", COLUMNS, rows)
    print(f"Scans, brain masks (ending brain) and split files: {output}")


if __name__ == "__main__":
    main()
