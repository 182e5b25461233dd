"""Scans and masks that are probably wrong are told, each by its own sentence, and others are not."""

import logging
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import needs_data
from monai.data import MetaTensor
from scripts.data.doubts import warn_of_clipping
from scripts.data.transforms import BrainMaskd

DATA = os.environ.get("ITERMASK_DATA")


def made_scan(slices=32):
    """A ball of 1,000 ml (32, 32, slices), of 4 mm voxels, brain-extracted."""
    places = np.mgrid[:32, :32, :32] - 15.5
    brain = (places**2).sum(axis=0) < 15.5**2
    voxels = np.where(brain, np.random.default_rng(0).normal(100, 10, brain.shape).round(), 0)
    start = (32 - slices) // 2
    return voxels[..., start : start + slices]


def told(caplog, voxels, mask=None, spacing=4.0, meta=None):
    """What is said of a scan, one line for each sentence."""
    affine = torch.diag(torch.tensor([spacing, spacing, spacing, 1.0], dtype=torch.float64))
    data = {"image": MetaTensor(torch.tensor(voxels)[None], affine=affine, meta=meta)}
    if mask is not None:
        data["brain_mask"] = MetaTensor(torch.tensor(mask)[None].float(), affine=affine)
    with caplog.at_level(logging.WARNING):
        found = BrainMaskd("image")({**data, "case": "one"})["brain_mask"]
    assert mask is None or np.array_equal(found.as_tensor()[0].numpy(), mask)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("shift", [0, 1, 8])
def test_mask_beside_the_brain(caplog, shift):
    voxels = made_scan()
    lines = told(caplog, voxels, np.roll(voxels > 0, shift, axis=0))
    assert len(lines) == (shift == 8)
    assert all("brain mask of which 31% is background while 31% of the scan lies outside" in line for line in lines)


def test_mask_with_a_margin_and_mask_of_a_head_with_noise_around_it_are_none(caplog):
    voxels = made_scan()
    assert not told(caplog, np.pad(voxels, 2), np.pad(np.ones(voxels.shape, bool), 2) & (np.pad(voxels, 2) >= 0), 3.0)
    noise = voxels + np.abs(np.random.default_rng(1).normal(0, 3, voxels.shape))
    assert not told(caplog, noise, np.roll(voxels > 0, 8, axis=0))


@pytest.mark.parametrize(("slices", "spacing", "small"), [(32, 4.0, False), (32, 2.0, True), (8, 4.0, False)])
def test_brain_that_is_too_small(caplog, slices, spacing, small):
    lines = told(caplog, made_scan(slices), spacing=spacing)
    assert len(lines) == small
    assert all("one has a brain of 123 ml, expected 500 ml or more" in line for line in lines)


def test_mask_that_is_too_small(caplog):
    mask = np.zeros((32, 32, 32), bool)
    mask[12:19, 12:19, 12:19] = True
    assert ["22 ml, expected 500 ml" in line for line in told(caplog, made_scan(), mask)] == [True]
    mask[:] = False
    mask[15:17, 15:17, 15] = True  # a lesion's
    with pytest.raises(ValueError, match="one has a brain of 0.256 ml, expected 500 ml or more"):
        told(caplog, made_scan(), mask)


@pytest.mark.parametrize(("side", "value", "holes"), [(1, 90, False), (2, 90, True), (2, 0, False)])
def test_holes_of_a_mask(caplog, side, value, holes):
    voxels = made_scan()
    hole = (slice(10, 10 + side), slice(14, 14 + side), slice(15, 15 + side))
    mask = voxels > 0
    mask[hole], voxels[hole] = False, value
    lines = told(caplog, voxels, mask)
    assert ["0.512 ml of holes" in line for line in lines] == [True] * holes


@pytest.mark.parametrize(("quantile", "clipped"), [(1.0, False), (0.99, False), (0.95, True)])
@pytest.mark.parametrize("factor", [1, 0.37])
def test_clipped_scan(caplog, quantile, clipped, factor):
    voxels = factor * made_scan()
    lines = told(caplog, np.minimum(voxels, np.quantile(voxels[voxels > 0], quantile)))
    assert ["one is clipped: " in line and "above is lost" in line for line in lines] == [True] * clipped


@pytest.mark.parametrize("levels", [3, 8, 20])
def test_few_levels_are_no_clipping(caplog, levels):
    shares = np.random.default_rng(2).normal(0, 1, 20000)
    edges = np.quantile(shares, np.linspace(0, 1, levels + 1)[1:-1])
    warn_of_clipping(np.digitize(shares, edges), "one")
    assert not caplog.records


@pytest.mark.parametrize(("codes", "warns"), [((0, 0), True), ((1, 0), False), ((0, 1), False), (None, False)])
def test_header_without_orientation(caplog, codes, warns):
    meta = dict(zip(("qform_code", "sform_code"), codes, strict=True)) if codes else None
    lines = told(caplog, made_scan(), meta=meta)
    assert ["left and right are assumed" in line for line in lines] == [True] * warns


@pytest.mark.data
@needs_data
def test_no_doubts_about_real_scans(caplog):
    for path in sorted((Path(DATA) / "open_ms").glob("*/*_flair.nii.gz")):
        mask = np.asarray(nib.load(str(path).replace("_flair", "_mask")).dataobj) > 0
        assert not told(caplog, np.asarray(nib.load(path).dataobj, np.float32), mask, 1.0)
