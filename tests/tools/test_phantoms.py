"""Phantoms: the same seed is the same brain, and the folder is what the readers of BraTS data expect."""

import csv

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scripts.tools.phantoms import COLUMNS, LESIONS, MODALITIES, SPLITS, make_phantoms, phantom, phantom_affine

SHAPE = (48, 56, 6)
SHARP = (96, 112, 6)  # thin tissues need voxels of 1.75 mm
NUMBERS = {"training": 2, "validation": 1, "testing": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small data set, written once."""
    return make_phantoms(tmp_path_factory.mktemp("phantoms"), **NUMBERS, seed=3, shape=SHAPE)


def rows_of(folder):
    with open(folder / "phantoms.csv", newline="") as file:
        return list(csv.DictReader(file))


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*/*.nii.gz")}


def medians(subject, name):
    """Median signal of fluid, cortex and white matter away from their borders."""
    inner = [ndimage.binary_erosion(subject["tissue"] == tissue, np.ones((2, 2, 1))) for tissue in (1, 2, 4)]
    return [np.median(subject[name][where]) for where in inner]


def test_a_seed_gives_one_brain_and_leaves_the_global_random_state():
    before = np.random.get_state()[1].copy()
    first, again, other = (phantom(seed, SHAPE, "bright") for seed in (1, 1, 2))
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert (first["mask"] != other["mask"]).any() and (first["flair"] != other["flair"]).any()
    assert np.array_equal(before, np.random.get_state()[1])


def test_the_same_seed_is_the_same_brain_at_another_resolution():
    fine, coarse = phantom(4, (96, 112, 12), "dark"), phantom(4, (48, 56, 12), "dark")
    for key in ("mask", "seg"):
        sampled = fine[key][::2, ::2]
        overlap = 2 * (sampled & coarse[key]).sum() / (sampled.sum() + coarse[key].sum())
        assert overlap > 0.85


@pytest.mark.parametrize("lesion", LESIONS)
@pytest.mark.parametrize("seed", range(3))
def test_a_lesion_changes_its_own_place_only(lesion, seed):
    healthy, sick = phantom(seed, SHAPE), phantom(seed, SHAPE, lesion)
    near = ndimage.binary_dilation(sick["seg"], np.ones((3, 3, 3)))
    assert sick["seg"].any() and not healthy["seg"].any()
    assert (sick["seg"] <= sick["mask"]).all()
    assert np.array_equal(healthy["mask"], sick["mask"])
    for name in MODALITIES:
        changed = healthy[name] != sick[name]
        assert changed[sick["seg"] == 1].mean() > 0.8
        assert changed[~near].sum() <= 1  # a tip that fills less than half of its voxel


@pytest.mark.parametrize("seed", range(5))
def test_a_lesion_is_seen_in_the_central_slices(seed):
    depth = phantom(seed, (48, 56, 24), "dark")["seg"].any(axis=(0, 1))
    assert depth[8:17].sum() >= 5


@pytest.mark.parametrize("seed", range(3))
def test_tissues_have_the_contrast_of_each_modality(seed):
    subject = phantom(seed, SHARP)
    fluid, cortex, white = medians(subject, "flair")
    assert fluid < white < cortex
    fluid, cortex, white = medians(subject, "t1")
    assert fluid < cortex < white
    fluid, cortex, white = medians(subject, "t2")
    assert white < cortex < fluid


@pytest.mark.parametrize(("lesion", "flair", "t1"), [("bright", 1, -1), ("dark", -1, -1)])
def test_lesions_are_brighter_or_darker_than_what_they_replace(lesion, flair, t1):
    for seed in range(2):
        healthy, sick = phantom(seed, SHARP), phantom(seed, SHARP, lesion)
        inside = sick["seg"] == 1
        for name, sign in (("flair", flair), ("t1", t1), ("t2", 1)):
            assert sign * (sick[name][inside].mean() / healthy[name][inside].mean() - 1) > 0.05


@pytest.mark.parametrize("name", MODALITIES)
def test_a_texture_has_the_mean_and_the_range_of_healthy_tissue(name):
    for seed in range(2):
        healthy, sick = phantom(seed, SHARP), phantom(seed, SHARP, "texture")
        inside = sick["seg"] == 1
        assert sick[name][inside].mean() == pytest.approx(healthy[name][inside].mean(), rel=0.04)
        assert sick[name][inside].max() < 1.25 * np.quantile(healthy[name][healthy["mask"] == 1], 0.995)


@pytest.mark.parametrize(("lesion", "name"), [("dark", "flair"), ("texture", "flair"), ("bright", "t1")])
def test_no_brightness_threshold_finds_a_lesion_that_is_not_the_brightest(lesion, name):
    for seed in range(2):
        subject = phantom(seed, SHARP, lesion)
        brain, inside = subject["mask"] == 1, subject["seg"] == 1
        smooth = ndimage.gaussian_filter(subject[name].astype(float), (2, 2, 0))
        for score in (subject[name], smooth):
            bright = [brain & (score > np.quantile(score[brain], part)) for part in np.linspace(0, 0.98, 50)]
            dice = max(2 * (pred & inside).sum() / (pred.sum() + inside.sum()) for pred in bright)
            assert dice < 0.35


def test_background_is_zero_and_the_brain_above():
    subject = phantom(5, SHAPE)
    for name in MODALITIES:
        assert np.array_equal(subject[name] > 0, subject["mask"] == 1)


def test_splits_and_table_name_every_case(folder):
    rows = rows_of(folder)
    assert tuple(rows[0]) == COLUMNS
    for split in SPLITS:
        names = (folder / f"split_{split}.txt").read_text().split()
        assert len(names) == NUMBERS[split]
        assert names == [row["case"] for row in rows if row["split"] == split]
        assert all((folder / name / f"{name}_flair.nii.gz").exists() for name in names)
    assert [row["kind"] for row in rows if row["split"] == "testing"] == list(LESIONS)
    assert {row["kind"] for row in rows if row["split"] != "testing"} == {"healthy"}


def test_the_table_counts_the_voxels_of_the_label(folder):
    for row in rows_of(folder):
        image = nib.load(folder / row["case"] / f"{row['case']}_seg.nii.gz")
        voxels = int(np.asarray(image.dataobj).sum())
        assert int(row["lesion_voxels"]) == voxels
        assert float(row["lesion_ml"]) == pytest.approx(voxels * np.prod(image.header.get_zooms()) / 1000, abs=1e-3)
        assert (voxels > 0) == (row["split"] == "testing")


def test_volumes_share_a_ras_affine_away_from_the_origin(folder):
    for path in folder.glob("*/*.nii.gz"):
        image = nib.load(path)
        assert image.shape == SHAPE
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert np.allclose(image.affine, phantom_affine(SHAPE))
        assert image.get_data_dtype() == (np.uint8 if path.name.endswith(("seg.nii.gz", "mask.nii.gz")) else np.int16)
    assert np.allclose(nib.affines.voxel_sizes(phantom_affine((96, 112, 24))), (1.75, 1.75, 2.0))
    assert (phantom_affine(SHAPE)[:3, 3] != 0).all()


def test_a_rerun_keeps_files_and_mends_what_is_missing_or_cut_short(folder):
    before = stamps(folder)
    table = (folder / "phantoms.csv").read_text()
    names = (folder / "split_testing.txt").read_text().split()
    (folder / names[0] / f"{names[0]}_t1.nii.gz").unlink()
    cut = folder / names[1] / f"{names[1]}_flair.nii.gz"
    cut.write_bytes(cut.read_bytes()[:2000])
    with pytest.raises(ValueError, match=f"{cut.name} was changed since it was written"):
        make_phantoms(folder, **NUMBERS, seed=3, shape=SHAPE)
    cut.unlink()
    make_phantoms(folder, **NUMBERS, seed=3, shape=SHAPE)
    after = stamps(folder)
    assert set(after) == set(before)
    assert {name.rsplit("_", 1)[0] for name in before if before[name] != after[name]} == set(names[:2])
    assert (folder / "phantoms.csv").read_text() == table


def test_other_settings_replace_the_files_and_workers_change_nothing(folder, tmp_path):
    make_phantoms(tmp_path, **NUMBERS, seed=4, shape=SHAPE)
    make_phantoms(tmp_path, **NUMBERS, seed=3, shape=SHAPE, num_workers=2)
    for path in folder.glob("*/*.nii.gz"):
        copy = tmp_path / path.relative_to(folder)
        assert np.array_equal(nib.load(path).dataobj, nib.load(copy).dataobj)
    assert (folder / "phantoms.csv").read_text() == (tmp_path / "phantoms.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lesion": "green"}, "`lesion` must be None or one of bright, dark, texture, got 'green'"),
        ({"contrast": 0.0}, r"`contrast` must be in \(0, 1\], got 0.0"),
        ({"lesion": "dark", "radius": 60}, r"`radius` must be in \(0, 40\] mm, got 60"),
        ({"shape": (48, 56)}, r"`shape` must be three numbers of voxels .* got \(48, 56\)"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        phantom(0, **arguments)


def test_a_negative_number_of_subjects_is_named(tmp_path):
    with pytest.raises(ValueError, match="`testing` must be 0 or more, got -1"):
        make_phantoms(tmp_path, testing=-1)


def test_a_lesion_has_the_radius_that_was_asked():
    sizes = [int(phantom(5, SHAPE, "dark", radius=radius)["seg"].sum()) for radius in (6, 12, 24)]
    assert 0 < 3 * sizes[0] < sizes[1] and 2 * sizes[1] < sizes[2]
    healthy = phantom(5, SHAPE)["flair"]
    small = phantom(5, SHAPE, "dark", radius=6)
    changed = (healthy != small["flair"]) & (small["mask"] > 0)
    assert 0 < changed.sum() < 8 * sizes[0]
