"""Scans painted from label maps: the folder is what preprocessing expects, and a seed gives the same scans again."""

import csv

import nibabel as nib
import numpy as np
import pytest
from conftest import write_nifti
from scripts.tools.synthetic_heads import main

OPTIONS = ["--volumes", "1", "--validation", "1", "--testing", "1", "--seed", "3"]


@pytest.fixture(scope="module")
def label_maps(tmp_path_factory):
    """Three small heads: skull, fluid, cortex, white matter and ventricles, (72, 70, 68), in other axes than RAS."""
    folder = tmp_path_factory.mktemp("maps")
    labels = np.zeros((72, 70, 68), np.int16)
    for depth, label in ((2, 515), (7, 24), (9, 3), (14, 2)):
        labels[tuple(slice(depth, size - depth) for size in labels.shape)] = label
    labels[30:36, 25:45, 30:38], labels[36:42, 25:45, 30:38] = 4, 43
    labels[30:42, 30:40, 16:22], labels[50:56, 30:40, 16:24], labels[20:26, 30:40, 16:24] = 16, 8, 47
    affine = np.diag([-1.0, 1, 1, 1])
    for number in range(3):
        write_nifti(folder / f"head_{number}.nii.gz", labels, affine)
    return folder


@pytest.fixture(scope="module")
def made(label_maps, tmp_path_factory):
    output = tmp_path_factory.mktemp("made")
    main(["--label_maps_dir", str(label_maps), "--output_dir", str(output), *OPTIONS])
    return output


def voxels(folder, case, key):
    return np.asarray(nib.load(folder / case / f"{case}_{key}.nii.gz").dataobj)


def test_lesions_are_in_the_brains_for_testing_alone(made):
    with open(made / "synthetic_heads.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["training", "validation", "testing"]
    for row in rows:
        image, lesion, brain = (voxels(made, row["case"], key) for key in ("flair", "seg", "brain"))
        assert image[brain > 0].min() > 0 and not image[brain == 0].any() and not lesion[brain == 0].any()
        assert bool(lesion.any()) == (row["split"] == "testing")
        assert lesion.sum() / 1000 == pytest.approx(float(row["lesion_ml"]), abs=1e-3)
    assert image[lesion > 0].mean() > 1.1 * np.median(image[(brain > 0) & (lesion == 0)])


def test_same_seed_gives_the_same_scans_and_another_does_not(made, label_maps, tmp_path):
    for seed, same in (("3", True), ("4", False)):
        output = tmp_path / seed
        main(["--label_maps_dir", str(label_maps), "--output_dir", str(output), *OPTIONS[:-1], seed])
        first, second = (voxels(folder, "synthetic_testing_00_0", "flair") for folder in (made, output))
        assert (first.shape == second.shape and np.array_equal(first, second)) is same
