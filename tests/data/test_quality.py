"""Scans and masks that are probably wrong are told, each by its own sentence, and others are not."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import needs_data
from monai.data import MetaTensor
from scripts.data.quality import check_levels, check_marked
from scripts.data.transforms import BrainMaskd, LesionLabeld

DATA = os.environ.get("ITERMASK_DATA")


def made_scan(slices=32):
    """A ball of 1,000 ml (32, 32, slices), of 4 mm voxels, brain-extracted."""
    places = np.mgrid[:32, :32, :32] - 15.5
    brain = (places**2).sum(axis=0) < 15.5**2
    voxels = np.where(brain, np.random.default_rng(0).normal(100, 10, brain.shape).round(), 0)
    start = (32 - slices) // 2
    return voxels[..., start : start + slices]


def scan_of(voxels, spacing, meta=None):
    affine = torch.diag(torch.tensor([spacing, spacing, spacing, 1.0], dtype=torch.float64))
    return MetaTensor(torch.tensor(voxels)[None], affine=affine, meta=meta)


def told(voxels, mask=None, spacing=4.0, meta=None, **options):
    """What is said of a scan, one line for each sentence."""
    data = {"image": scan_of(voxels, spacing, meta), "case": "one"}
    if mask is not None:
        data["brain_mask"] = scan_of(mask.astype(np.float32), spacing)
    found = BrainMaskd("image", **options)(data)
    return found["warnings"]


@pytest.mark.parametrize("shift", [0, 1, 8])
def test_mask_beside_the_brain(shift):
    voxels = made_scan()
    lines = told(voxels, np.roll(voxels > 0, shift, axis=0))
    assert len(lines) == (shift == 8)
    assert all("brain mask of which 31% is background while 31% of the scan lies outside" in line for line in lines)


def test_mask_with_a_margin_and_mask_of_a_head_with_noise_around_it_are_none():
    voxels = np.pad(made_scan(), 2)
    assert not told(voxels, np.pad(np.ones((32, 32, 32), bool), 2))
    noise = made_scan() + np.abs(np.random.default_rng(1).normal(0, 3, (32, 32, 32)))
    assert not told(noise, np.roll(made_scan() > 0, 8, axis=0))


def test_lost_slices():
    voxels = made_scan()
    voxels[:, 4::6] = 0
    (line,) = told(voxels)
    assert "has 5 empty slices between others along its second axis" in line


@pytest.mark.parametrize(
    ("slices", "spacing", "line"),
    [
        (32, 4.0, None),
        (32, 2.2, "has a brain of 164 ml, expected 200 to 2500 ml"),
        (32, 5.6, "has a brain of 2.71e+03 ml, expected 200 to 2500 ml"),
        (8, 4.0, None),  # a slab
        (32, 0.4, "whether the header gives the size of voxels in mm, not cm"),  # no slab: small along every axis
    ],
)
def test_brain_of_another_size_than_any(slices, spacing, line):
    voxels = made_scan(slices)
    if spacing == 0.4:  # 1 ml
        with pytest.raises(ValueError, match=line):
            told(voxels, spacing=spacing)
    else:
        assert [line in found for found in told(voxels, spacing=spacing)] == [True] * (line is not None)


def test_mask_that_is_no_brain():
    mask = np.zeros((32, 32, 32), bool)
    mask[12:19, 12:19, 12:19] = True
    assert ["22 ml, expected 200 to" in line for line in told(made_scan(), mask)] == [True]
    mask[:] = False
    mask[15:17, 15:17, 15] = True  # a lesion's
    with pytest.raises(ValueError, match="one has a brain of 0.256 ml, expected 200 to 2500 ml"):
        told(made_scan(), mask)


@pytest.mark.parametrize(("side", "value", "holes"), [(1, 90, False), (2, 90, True), (2, 0, False)])
def test_holes_of_a_mask(side, value, holes):
    voxels = made_scan()
    hole = (slice(10, 10 + side), slice(14, 14 + side), slice(15, 15 + side))
    mask = voxels > 0
    mask[hole], voxels[hole] = False, value
    assert ["0.512 ml of holes" in line for line in told(voxels, mask)] == [True] * holes


@pytest.mark.parametrize(("quantile", "clipped"), [(1.0, False), (0.99, False), (0.95, True)])
@pytest.mark.parametrize("factor", [1, 0.37])
def test_clipped_scan(quantile, clipped, factor):
    voxels = factor * made_scan()
    lines = told(np.minimum(voxels, np.quantile(voxels[voxels > 0], quantile)))
    assert ["one is clipped: " in line and "above is lost" in line for line in lines] == [True] * clipped


@pytest.mark.parametrize(("levels", "line"), [(3, "has 3 intensities in its brain"), (15, "map of labels"), (20, None)])
def test_few_levels_are_a_map_of_labels_and_no_clipping(levels, line):
    parts = np.random.default_rng(2).normal(0, 1, 20000)
    edges = np.quantile(parts, np.linspace(0, 1, levels + 1)[1:-1])
    sentence = check_levels(np.digitize(parts, edges))
    assert sentence is None if line is None else line in sentence


@pytest.mark.parametrize(("codes", "warns"), [((0, 0), True), ((1, 0), False), ((0, 1), False), (None, False)])
def test_header_without_orientation(codes, warns):
    meta = dict(zip(("qform_code", "sform_code"), codes, strict=True)) if codes else None
    assert ["left and right are assumed" in line for line in told(made_scan(), meta=meta)] == [True] * warns


def with_lesion(height):
    """The scan with a smooth lump in it, that many times as bright as the brain."""
    places = np.mgrid[:32, :32, :32] - np.array([12, 20, 15])[:, None, None, None]
    lump = np.exp(-(places**2).sum(axis=0) / (2 * 3.0**2))
    voxels = made_scan()
    return np.where(voxels > 0, voxels * (1 + (height - 1) * lump), 0)


def test_brightest_voxels_that_were_wrapped_to_negative_are_refused():
    voxels = with_lesion(2) * 200
    assert not told(voxels) and (voxels > 2**15).sum() > 50
    with pytest.raises(ValueError, match="one has .* strongly negative voxels beside its brightest ones"):
        told(voxels.astype(np.int64).astype(np.int16).astype(np.float64))


@pytest.mark.parametrize("sign", [1, -1])
def test_negative_voxels_of_a_normalized_scan_are_none(sign):
    voxels = with_lesion(2)
    brain = voxels > 0
    assert not told(np.where(brain, sign * (voxels - voxels[brain].mean()) / voxels[brain].std(), -9))


@pytest.mark.parametrize(("modality", "warns"), [("flair", True), ("T1w", True), ("t2", False), (None, False)])
def test_fluid_that_is_bright_is_told_where_it_should_be_dark(modality, warns):
    voxels = made_scan()
    voxels[10:18, 10:18, 8:20] *= 3
    lines = told(voxels, modalities=[modality] if modality else [])
    assert [f"is probably no {modality}" in line for line in lines] == [True] * warns


def label_of(*values):
    label = np.zeros((9, 9, 9), np.float32)
    for place, value in enumerate(values):
        label[place, :2, 0] = value
    return {"label": scan_of(label, 10.0), "case": "one"}


def test_values_of_a_lesion_mask_that_count_can_be_chosen_and_are_told_where_they_are_not():
    several = LesionLabeld("label")(label_of(1, 2, 2))
    assert several["label"].sum() == 6 and several["warnings"] == [
        "one has a lesion mask of several values, 1 (2 ml), 2 (4 ml): all count, unless `label_values` says which."
    ]
    chosen = LesionLabeld("label", values=[1])(label_of(1, 2, 2))
    assert chosen["label"].sum() == 2 and chosen["label"].max() == 1 and not chosen["warnings"]
    assert not LesionLabeld("label")(label_of(7))["warnings"]
    with pytest.raises(ValueError, match="one has a lesion mask with voxels of 0.4, expected whole numbers"):
        LesionLabeld("label")(label_of(0.4))


@pytest.mark.parametrize(("marked_ml", "warns"), [(150.0, False), (291.0, True)])
def test_result_that_marks_more_than_lesions_take(marked_ml, warns):
    sentence = check_marked(marked_ml, 1400.0)
    assert (sentence is not None and "has 291 ml marked, 21% of the brain" in sentence) == warns


def open_ms(modality="flair"):
    for path in sorted((Path(DATA) / "open_ms").glob(f"*/*_{modality}.nii.gz")):
        mask = np.asarray(nib.load(str(path).replace(f"_{modality}.", "_mask.")).dataobj) > 0
        yield np.asarray(nib.load(path).dataobj, np.float32), mask


@pytest.mark.data
@needs_data
def test_nothing_is_said_of_real_scans():
    for modality in ("flair", "t1", "t2"):
        for voxels, mask in open_ms(modality):
            assert not told(voxels, mask, 1.0, modalities=[modality])


@pytest.mark.data
@needs_data
def test_real_scans_that_are_wrapped_or_another_modality_are_told():
    for voxels, mask in open_ms():
        scaled = voxels * 1.1 * 2**15 / np.quantile(voxels[mask], 0.999)
        with pytest.raises(ValueError, match="strongly negative"):
            told(scaled.astype(np.int64).astype(np.int16).astype(np.float32), mask, 1.0)
    for voxels, mask in open_ms("t2"):
        assert ["is probably no flair" in line for line in told(voxels, mask, 1.0, modalities=["flair"])] == [True]
