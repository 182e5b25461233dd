"""The grid of the demo's cases."""

from __future__ import annotations

import csv

import pytest
from PIL import Image
from scripts.tools import phantom_grid


def test_grid_needs_the_demo(tmp_path):
    with pytest.raises(SystemExit, match="error: no .*model.pt"):
        phantom_grid.main(["--demo_dir", str(tmp_path)])


def test_grid_averages_the_cases_of_a_cell_and_draws_them(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom_grid, "RADII", (8, 16))
    monkeypatch.setattr(phantom_grid, "LESIONS", (("dark", 0.5), ("bright", 1.0)))
    cells = phantom_grid.write_volumes(tmp_path / "scans", 2, 0)
    assert len(cells) == 8 and len(list((tmp_path / "scans").glob("*/*_seg.nii.gz"))) == 8
    with (tmp_path / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", *phantom_grid.SCORES])
        for case in cells:
            value = 0.25 if case.startswith("r08_dark") else ""
            writer.writerow([case, value if case.endswith("0") else 0.75, 0.5, 0.5])
    grids = phantom_grid.mean_dice(tmp_path / "cases.csv", cells)
    assert grids["dice"].tolist() == [[0.5, 0.75], [0.75, 0.75]]
    phantom_grid.draw(grids, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.height > 3 * 100
    assert "| 8 mm | 0.50 / 0.50 / 0.50 | 0.75 / 0.50 / 0.50 |" in phantom_grid.table(grids)
