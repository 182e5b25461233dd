"""Where the method sees what thresholding cannot: ``python bundle/scripts/tools/phantom_grid.py`` after the demo.

Phantom volumes with one lesion each, over a grid of lesion sizes and contrasts, are segmented whole; a table and a
picture show the mean Dice in each cell of the grid, of the method and of thresholding.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

BUNDLE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(BUNDLE))

from scripts.common.errors import report_errors  # noqa: E402
from scripts.common.files import atomic, check_writable  # noqa: E402
from scripts.common.ownership import claim, written  # noqa: E402
from scripts.tools.demo import SLICES, run_bundle  # noqa: E402
from scripts.tools.phantoms import phantom, phantom_affine  # noqa: E402

RADII = (5, 8, 12, 18, 26)  # mm
LESIONS = (
    ("dark", 1.0),
    ("dark", 0.5),
    ("dark", 0.2),
    ("texture", 0.5),
    ("texture", 1.0),
    ("bright", 0.1),
    ("bright", 0.3),
    ("bright", 0.6),
    ("bright", 1.0),
)
SCORES = {
    "dice": "IterMask",
    "baseline_smoothed_dice": "smoothed z-score",
    "baseline_absolute_dice": "smoothed z-score, absolute",
}
CELL, HEAD, SIDE = (78, 40), 76, 96


def write_volumes(folder: Path, repeats: int, seed: int) -> dict[str, tuple[int, tuple[str, float]]]:
    """Write the volumes that are not there yet; gives the cell of the grid that each case belongs to."""
    cells = {}
    work = list(product(range(repeats), RADII, LESIONS))
    for repeat, radius, (kind, contrast) in tqdm(work, desc="phantoms", unit="volume"):
        case = f"r{radius:02d}_{kind}_{round(100 * contrast):03d}_{repeat}"
        cells[case] = (radius, (kind, contrast))
        files = {key: folder / case / f"{case}_{key}.nii.gz" for key in ("flair", "seg")}
        if all(path.is_file() for path in files.values()):
            continue
        volumes = phantom((seed, 9, repeat), lesion=kind, contrast=contrast, radius=radius)
        for key, path in files.items():
            with atomic(path) as temporary:
                nib.save(nib.Nifti1Image(volumes[key], phantom_affine(volumes[key].shape)), temporary)
    return cells


def mean_dice(cases_file: Path, cells: dict[str, tuple[int, tuple[str, float]]]) -> dict[str, np.ndarray]:
    """Mean Dice of each score in each cell, (sizes, kinds and contrasts)."""
    found: dict[str, np.ndarray] = {}
    with open(cases_file, newline="") as file:
        rows = list(csv.DictReader(file))
    for column in SCORES:
        groups = [
            [[float(row[column] or "nan") for row in rows if cells[row["case"]] == (r, one)] for one in LESIONS]
            for r in RADII
        ]
        found[column] = np.array([[np.nanmean(group) for group in row] for row in groups])
    return found


def draw(grids: dict[str, np.ndarray], picture: Path) -> None:
    """Draw one grid under the other, a cell the greener the higher its mean Dice."""
    width, block = SIDE + CELL[0] * len(LESIONS) + 12, HEAD + CELL[1] * len(RADII) + 12
    image = Image.new("RGB", (width, block * len(grids)), "white")
    pen, font, bold = ImageDraw.Draw(image), ImageFont.load_default(15), ImageFont.load_default(18)
    for number, (column, grid) in enumerate(grids.items()):
        top = number * block
        pen.text((SIDE, top + 6), f"{SCORES[column]}: mean Dice of whole volumes", "black", bold)
        for x, (kind, contrast) in enumerate(LESIONS):
            middle = SIDE + (x + 0.5) * CELL[0]
            pen.text((middle, top + 46), kind, "black", font, anchor="mm")
            pen.text((middle, top + 64), f"{contrast:g}", "black", font, anchor="mm")
        for y, radius in enumerate(RADII):
            low = top + HEAD + y * CELL[1]
            pen.text((8, low + 10), f"{radius} mm", "black", font)
            for x in range(len(LESIONS)):
                dice, left = float(grid[y, x]), SIDE + x * CELL[0]
                color = tuple(round(255 - dice * (255 - end)) for end in (20, 130, 90))
                pen.rectangle((left, low, left + CELL[0] - 2, low + CELL[1] - 2), color)
                where = (left + CELL[0] / 2, low + CELL[1] / 2)
                pen.text(where, f"{dice:.2f}", "white" if dice > 0.6 else "black", font, anchor="mm")
    with atomic(picture) as temporary:
        image.save(temporary)


def table(grids: dict[str, np.ndarray]) -> str:
    """All grids in Markdown: a line for each size, the scores in each cell in the order of `SCORES`."""
    lines = ["| radius | " + " | ".join(f"{kind} {contrast:g}" for kind, contrast in LESIONS) + " |"]
    lines += ["|---" * (len(LESIONS) + 1) + "|"]
    for y, radius in enumerate(RADII):
        cells = [" / ".join(f"{grid[y, x]:.2f}" for grid in grids.values()) for x in range(len(LESIONS))]
        lines.append(f"| {radius} mm | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the volumes, evaluate them with the demo's model, and show the grid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo_dir", default="demo", help="what scripts/tools/demo.py wrote (default: ./demo)")
    parser.add_argument("--output_dir", default="demo/grid", help="where volumes, evaluation and picture go")
    parser.add_argument("--repeats", type=int, default=3, help="volumes in each cell")
    parser.add_argument("--seed", type=int, default=0, help="seed of the phantoms")
    options = parser.parse_args(arguments)
    model, slices = Path(options.demo_dir) / "model.pt", Path(options.demo_dir) / "slices"
    if not model.is_file():
        raise SystemExit(f"error: no {model}: run scripts/tools/demo.py first, or set --demo_dir.")
    try:
        output = check_writable(options.output_dir)
    except OSError as error:
        raise SystemExit(f"error: {error}") from None
    report_errors()
    claim(output, "phantom_grid", ["scans", "grid.png", "grid.md"])
    with written(output, "phantom_grid", ["scans"]):
        cells = write_volumes(output / "scans", options.repeats, options.seed)
    evaluation = {"output_dir": output / "evaluation", "model_file": model, "healthy_dir": slices, "pictures": False}
    run_bundle("evaluate", "evaluate", dataset_dir=output / "scans", slice_range=SLICES, **evaluation)
    grids = mean_dice(output / "evaluation" / "cases.csv", cells)
    with written(output, "phantom_grid", ["grid.png", "grid.md"]):
        draw(grids, output / "grid.png")
        with atomic(output / "grid.md") as temporary:
            temporary.write_text(table(grids))
    print(f"\n{table(grids)}\nIn each cell {' / '.join(SCORES.values())}. Picture: {output / 'grid.png'}")


if __name__ == "__main__":
    main()
