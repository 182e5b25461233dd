"""Phantoms: the same seed is the same brain, and the folder is what the readers of BraTS data expect."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scripts.tools.phantoms import (
    CORTEX_LABELS,
    FIELD_OF_VIEW,
    FLUID_LABELS,
    SIGNAL,
    SPLITS,
    WHITE_LABELS,
    label_map,
    make_phantoms,
    phantom,
    phantom_affine,
)

SHAPE = (48, 56, 6)
SHARP = (96, 112, 6)  # thin tissues need voxels of 1.75 mm
NUMBERS = {"training": 2, "validation": 1, "testing": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small data set, written once."""
    return make_phantoms(tmp_path_factory.mktemp("phantoms"), **NUMBERS, seed=3, shape=SHAPE)


def grid(shape, size):
    return [((np.arange(n) + 0.5) / n - 0.5) * extent for n, extent in zip(shape, size, strict=True)]


def overlap(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


def test_a_seed_is_one_brain_at_any_resolution():
    fine, coarse, other = (
        label_map(seed, grid(shape, (152, 190, 158)))
        for seed, shape in ((4, (76, 95, 79)), (4, (38, 95, 79)), (5, (76, 95, 79)))
    )
    assert overlap(fine[::2] > 0, coarse > 0) > 0.95 > overlap(fine > 0, other > 0)


def test_a_whole_brain_has_its_parts_at_their_sides_and_sizes():
    labels = label_map(0, grid((76, 95, 83), (152, 190, 166)))
    ml = {label: np.count_nonzero(labels == label) * 0.008 for label in np.unique(labels)}
    pairs = ((2, 41), (3, 42), (4, 43), (7, 46), (8, 47), (10, 49), (11, 50), (12, 51), (13, 52), (17, 53), (18, 54))
    for left, right in pairs:
        assert ml[left] == pytest.approx(ml[right], rel=0.5)
        assert np.argwhere(labels == left)[:, 0].mean() < 37.5 < np.argwhere(labels == right)[:, 0].mean()
    assert 1000 < sum(ml.values()) - ml[0] < 1900 and 10 < ml[4] + ml[43] < 100 and 80 < ml[8] + ml[47] < 200
    edges = [labels[0], labels[-1], labels[:, 0], labels[:, -1], labels[..., 0], labels[..., -1]]
    assert not any(edge.any() for edge in edges)


@pytest.mark.parametrize("lesion", ["bright", "dark"])
def test_a_lesion_changes_its_own_place_only_and_is_seen_in_the_middle(lesion):
    healthy, sick = phantom(1, SHAPE), phantom(1, SHAPE, lesion)
    inside = sick["seg"] > 0
    near = ndimage.binary_dilation(inside, np.ones((3, 3, 3)), iterations=3)
    assert inside[..., SHAPE[2] // 2].any() and not healthy["seg"].any() and not (inside & (sick["mask"] == 0)).any()
    assert np.array_equal(healthy["mask"], sick["mask"])
    signs = {"flair": 1 if lesion == "bright" else -1, "t1": -1, "t2": 1}
    for name in SIGNAL:
        assert signs[name] * (sick[name][inside].mean() / healthy[name][inside].mean() - 1) > 0.05
        assert not (healthy[name] != sick[name])[~near].any()
        assert np.array_equal(sick[name] > 0, sick["mask"] == 1)


def test_tissues_have_the_contrast_of_each_modality():
    subject = phantom(2, SHARP)
    labels = label_map(2, grid(SHARP, FIELD_OF_VIEW))
    order = {"flair": (FLUID_LABELS, WHITE_LABELS, CORTEX_LABELS), "t1": (FLUID_LABELS, CORTEX_LABELS, WHITE_LABELS)}
    for name, tissues in order.items():
        medians = [np.median(subject[name][np.isin(labels, tissue)]) for tissue in tissues]
        assert medians == sorted(medians)


def test_splits_name_every_case_and_volumes_are_ras(folder):
    for split in SPLITS:
        names = (folder / f"split_{split}.txt").read_text().split()
        assert len(names) == NUMBERS[split]
        for name in names:
            images = {key: nib.load(folder / name / f"{name}_{key}.nii.gz") for key in (*SIGNAL, "seg", "mask")}
            for image in images.values():
                assert image.shape == SHAPE and np.allclose(image.affine, phantom_affine(SHAPE))
            assert np.asarray(images["seg"].dataobj).any() == (split == "testing")
    assert nib.aff2axcodes(phantom_affine(SHAPE)) == ("R", "A", "S")


def test_a_rerun_mends_what_is_missing_and_touches_nothing_else(folder, tmp_path):
    def stamps():
        return {path.name: path.stat().st_mtime_ns for path in folder.glob("*/*.nii.gz")}

    before, (first, *_) = stamps(), (folder / "split_testing.txt").read_text().split()
    (folder / first / f"{first}_t1.nii.gz").unlink()
    make_phantoms(folder, **NUMBERS, seed=3, shape=SHAPE)
    assert {name for name, stamp in stamps().items() if before[name] != stamp} == {f"{first}_t1.nii.gz"}
    make_phantoms(tmp_path, **NUMBERS, seed=4, shape=SHAPE)
    make_phantoms(tmp_path, **NUMBERS, seed=3, shape=SHAPE)
    for path in folder.glob("*/*.nii.gz"):
        assert np.array_equal(nib.load(path).dataobj, nib.load(tmp_path / path.relative_to(folder)).dataobj)
