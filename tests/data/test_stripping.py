"""Scans that still have their skull are stripped, the others are left as they are."""

import os
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import needs_data, needs_deepbet, round_head, run_bundle
from monai.data import MetaTensor
from scipy import ndimage
from scripts.data import stripping
from scripts.data.brain import brain_mask_of
from scripts.data.stripping import brain_mask_or_strip, strip

DATA = os.environ.get("ITERMASK_DATA")


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def scan_of(voxels, affine):
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(voxels, np.float32))[None], affine=affine)


@needs_deepbet
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_head_is_stripped_whatever_the_background(noise):
    voxels, brain = round_head(noise)
    found = brain_mask_or_strip(scan_of(voxels, np.diag([4.0, 4, 4, 1])))
    assert found.dtype == torch.bool and dice(found[0].numpy(), brain) > 0.85


class Never:
    def __call__(self):
        raise AssertionError("deepbet was asked")


def test_brains_and_given_masks_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(stripping, "_deepbet", Never())
    voxels, brain = round_head()
    affine = np.diag([4.0, 4, 4, 1])
    alone = scan_of(np.where(brain, voxels, 0), affine)
    assert torch.equal(brain_mask_or_strip(alone), brain_mask_of(alone))
    given = torch.from_numpy(brain)[None].float()
    assert torch.equal(brain_mask_or_strip(scan_of(voxels, affine), given), given > 0.5)


def test_slab_is_not_stripped():
    voxels, _ = round_head(1.0)
    with pytest.raises(ValueError, match=r"shows too little of the head \(20 mm along one axis"):
        brain_mask_or_strip(scan_of(voxels[..., 24:29], np.diag([4.0, 4, 4, 1])))


def test_without_deepbet_one_sentence_says_what_to_install(monkeypatch):
    stripping._deepbet.cache_clear()
    monkeypatch.setattr(stripping, "optional_import", lambda *args, **kwargs: (None, False))
    voxels, _ = round_head()
    with pytest.raises(ValueError, match="deepbet.*is not installed"):
        strip(scan_of(voxels, np.diag([4.0, 4, 4, 1])))


def test_scan_without_a_brain_is_told(monkeypatch):
    def run(image):
        raise AssertionError("Not enough foreground to calculate bounding box")

    monkeypatch.setattr(stripping, "_deepbet", lambda: SimpleNamespace(run=run))
    voxels, _ = round_head()
    with pytest.raises(ValueError, match="deepbet finds no brain in it"):
        strip(scan_of(voxels, np.diag([4.0, 4, 4, 1])))


def turned(degrees, axis):
    matrix, (i, j) = np.eye(4), [(1, 2), (0, 2), (0, 1)][axis]
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix[i, i] = matrix[j, j] = cosine
    matrix[i, j], matrix[j, i] = -sine, sine
    return matrix


def label_map_head(number):
    """A FLAIR-like head (H, W, D) in RAS order of a label map, its brain with the fluid in it, and its affine."""
    path = Path(DATA) / f"label_maps/training_seg_{number:02d}.nii.gz"
    source = nib.as_closest_canonical(nib.load(path))
    labels = np.asarray(source.dataobj).astype(int)
    intensity = np.full(1000, 90.0)
    intensity[[3, 42, 8, 47]], intensity[[4, 5, 14, 15, 24, 43, 44]] = 110, 20
    intensity[500:], intensity[515], intensity[511], intensity[0] = 120, 12, 96, 0
    noise = np.random.default_rng(0).normal(0, 4, labels.shape)
    brain = ndimage.binary_opening((labels > 0) & (labels < 500), iterations=2)
    parts, _ = ndimage.label(brain)
    brain = parts == np.bincount(parts[parts > 0]).argmax()
    return np.abs(ndimage.gaussian_filter(intensity[labels] + noise, 0.5)).astype(np.float32), brain, source.affine


def seen(voxels, affine, spacing, turn, order=1):
    """A volume as a scanner with other voxels, turned about the middle, takes it: voxels and affine."""
    shape = [int(n / mm) for n, mm in zip(voxels.shape, spacing, strict=True)]
    middle = affine @ [*(np.array(voxels.shape) / 2), 1]
    about = np.eye(4)
    about[:3, 3] = middle[:3] - turn[:3, :3] @ middle[:3]
    grid = about @ turn @ affine @ np.diag([*spacing, 1])
    matrix = np.linalg.inv(affine) @ grid
    blurred = ndimage.gaussian_filter(voxels, [max(0, mm - 1) / 2.355 for mm in spacing])
    return ndimage.affine_transform(blurred, matrix[:3, :3], matrix[:3, 3], output_shape=shape, order=order), grid


@pytest.mark.data
@needs_data
@pytest.mark.slow
@needs_deepbet
@pytest.mark.parametrize(
    ("spacing", "degrees", "axis", "tilted"),
    [
        ((1, 1, 1), 0, 0, False),
        ((1, 1, 1), 15, 0, True),
        ((1, 1, 1), 15, 1, True),
        ((1, 1, 1), 15, 2, True),
        ((1, 1, 1), 20, 0, False),
        ((2, 2, 2), 0, 0, False),
        ((0.5, 0.5, 1), 0, 0, False),
        ((1, 1, 5), 15, 1, True),
        ((5, 1, 1), 0, 0, False),
    ],
)
def test_heads_of_label_maps(spacing, degrees, axis, tilted):
    """``tilted`` heads lie askew in their axes; the others are straight in axes that are askew."""
    voxels, brain, affine = label_map_head(17)
    turn = turned(degrees, axis)
    voxels_seen, grid = seen(voxels, affine, spacing, turn)
    brain_seen = seen(brain.astype(np.float32), affine, spacing, turn)[0] > 0.5
    header = affine @ np.diag([*spacing, 1]) if tilted else grid
    found = brain_mask_or_strip(scan_of(voxels_seen, header))[0].numpy()
    assert dice(found, brain_seen) > 0.95


@pytest.mark.parametrize("axes", ["RAS", pytest.param("PIL", marks=pytest.mark.slow)])
@needs_deepbet
def test_scan_with_its_skull_is_segmented_and_its_brain_mask_is_saved_on_request(tmp_path, axes):
    voxels, brain = round_head(1.0)
    image = nib.Nifti1Image(voxels, np.diag([4.0, 4, 4, 1]))
    codes = nib.orientations.axcodes2ornt(axes)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), codes)
    image = image.as_reoriented(turn)
    path = tmp_path / "head.nii.gz"
    nib.save(image, path)
    options = {"image": str(path), "output_dir": str(tmp_path / "out"), "device": torch.device("cpu"), "fast": True}
    run_bundle("inference", save_brain_mask=True, **options)
    mask, found = (nib.load(tmp_path / f"out/head/head_{name}.nii.gz") for name in ("anomaly_mask", "found_brain_mask"))
    np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)
    inside = np.asarray(found.dataobj) > 0
    assert dice(inside, nib.orientations.apply_orientation(brain, turn)) > 0.85
    assert np.asarray(mask.dataobj).any() and not (np.asarray(mask.dataobj)[~inside] > 0).any()
    run_bundle(
        "inference",
        brain_mask=str(tmp_path / "out/head/head_found_brain_mask.nii.gz"),
        **options | {"output_dir": str(tmp_path / "given")},
    )
    np.testing.assert_array_equal(nib.load(tmp_path / "given/head/head_anomaly_mask.nii.gz").dataobj, mask.dataobj)
