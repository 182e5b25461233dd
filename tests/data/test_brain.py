"""The brain is found whatever the scale and background of a scan, and what still has its skull is told."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import needs_data
from monai.data import MetaTensor
from scipy import ndimage
from scripts.data.brain import background_of, brain_mask_of, lesion_of, sign_of_skull
from scripts.data.transforms import BrainMaskd
from scripts.tools.phantoms import phantom

CHANGES = {
    "scaled": lambda v, brain: 3.7 * v,
    "background of 1": lambda v, brain: v + 1,
    "background of 0.001": lambda v, brain: v + np.float32(0.001),
    "negative background": lambda v, brain: 0.5 * v - 1024,
    "inverted": lambda v, brain: 1000 - v,
    "z-scored": lambda v, brain: np.where(brain, (v - v[brain].mean()) / v[brain].std(), 0),
    "z-scored with its background": lambda v, brain: (v - v[brain].mean()) / v[brain].std(),
}

DATA = os.environ.get("ITERMASK_DATA")


def scan_of(voxels, spacing=(1.0, 1.0, 1.0)):
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(voxels, np.float32))[None], affine=np.diag([*spacing, 1.0]))


def made_head(size=1.0, scalp=120.0, rim=None, skull=True):
    """A head (H, W, 12) of 1 mm: scalp, dark skull, fluid and a brain, or its brain with a rim of dura on it."""
    rows, columns = np.mgrid[-110:110, -90:90]
    depth = (80 * size) * (1 - np.hypot(rows / 1.2, columns) / (80 * size))  # mm below the skin, roughly
    edges = [0, 8 * size, 14 * size, 17 * size]
    plane = np.select(
        [depth < edges[0], depth < edges[1], depth < edges[2], depth < edges[3]], [0.0, scalp, 12.0, 20.0], 90.0
    )
    plane[(depth > 17 * size) & (depth < 21 * size)] = 110.0
    if not skull:
        plane[depth < edges[2]] = 0
    if rim is not None:
        plane[(depth > edges[2] - rim) & (depth < edges[2])] = scalp
    noise = np.random.default_rng(0).normal(0, 4, (*plane.shape, 12))
    return np.where(plane[..., None] > 0, plane[..., None] + noise, 0).astype(np.float32)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("slices", [6, 1])
def test_brain_does_not_depend_on_scale_and_background(change, slices):
    voxels = phantom(4, shape=(40, 48, 6))["flair"][..., :slices].astype(np.float32)
    brain = voxels > 0
    changed = np.asarray(CHANGES[change](voxels, brain), np.float32)
    assert np.array_equal(brain_mask_of(torch.from_numpy(changed)[None])[0].numpy(), brain)


def test_brain_of_a_slab_that_fills_most_of_its_box():
    voxels = np.zeros((20, 24, 3), np.float32)
    voxels[1:-1, 1:-1] = 7
    assert brain_mask_of(torch.from_numpy(voxels)[None]).sum() == 18 * 22 * 3


def test_noise_around_a_head_is_no_background():
    voxels = made_head() + np.abs(np.random.default_rng(1).normal(0, 3, (220, 180, 12)))
    assert background_of(torch.from_numpy(voxels)) is None
    with pytest.raises(ValueError, match="one has no constant background in channel 0"):
        BrainMaskd("image")({"image": scan_of(voxels), "case": "one"})
    given = scan_of(made_head(skull=False) > 0)
    found = BrainMaskd("image")({"image": scan_of(voxels), "brain_mask": given, "case": "one"})["brain_mask"]
    assert torch.equal(found.as_tensor(), given.as_tensor() > 0)


def test_background_inside_a_given_mask_is_no_brain():
    voxels = made_head(skull=False)
    brain = voxels > 0
    wide = scan_of(ndimage.binary_dilation(brain, iterations=8))
    found = BrainMaskd("image")({"image": scan_of(voxels), "brain_mask": wide, "case": "one"})["brain_mask"]
    assert np.array_equal(found.as_tensor()[0].numpy(), brain)
    with pytest.raises(ValueError, match="one has a brain mask that is empty, or marks background alone"):
        BrainMaskd("image")({"image": scan_of(voxels), "brain_mask": scan_of(~brain), "case": "one"})


@pytest.mark.parametrize(
    ("filled", "spacing", "warns"),
    [
        (0.5, 1.0, False),
        (0.95, 1.0, True),
        (0.5, 16.0, False),  # 2048 ml
        (0.5, 17.0, True),  # 2456 ml
    ],
)
def test_warns_of_a_skull_by_volume_or_cover(filled, spacing, warns):
    image = torch.rand(1, 10, 10, 10, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros_like(image)
    mask.view(-1)[: int(1000 * filled)] = 1
    affine = torch.diag(torch.tensor([spacing, spacing, -spacing, 1], dtype=torch.float64))
    data = {"image": MetaTensor(image, affine=affine), "brain_mask": MetaTensor(mask, affine=affine)}
    lines = BrainMaskd("image")({**data, "case": "one"})["warnings"]
    assert sum(line.startswith("one may still have its skull") for line in lines) == warns


@pytest.mark.parametrize("size", [1.0, 0.75, 0.5])
@pytest.mark.parametrize("scalp", [120.0, 60.0])
def test_warns_of_the_skull_of_a_small_head(size, scalp):
    image = scan_of(made_head(size, scalp))
    assert "a bright rim" in sign_of_skull(image, brain_mask_of(image))
    alone = scan_of(made_head(size, scalp, skull=False))
    assert sign_of_skull(alone, brain_mask_of(alone)) is None


@pytest.mark.parametrize("rim", [2, 4])
def test_warns_of_a_rim_of_dura(rim):
    image = scan_of(made_head(rim=rim, skull=False))
    assert "a bright rim" in sign_of_skull(image, brain_mask_of(image))


@pytest.mark.parametrize(("shape", "spacing"), [((40, 48, 6), 4.0), ((80, 96, 5), 2.0), ((160, 192, 2), 1.0)])
@pytest.mark.parametrize("modality", ["flair", "t1"])
def test_no_alarm_on_phantoms(shape, spacing, modality):
    for seed in range(3):
        image = scan_of(phantom(seed, shape=shape, lesion="bright")[modality], (spacing, spacing, 5.0))
        assert sign_of_skull(image, brain_mask_of(image)) is None


def test_lesion_is_what_is_above_0_whatever_its_class():
    label = torch.tensor([[0.0, 1, 4], [255, 0.9999999, 0]])
    assert lesion_of(label, "one").tolist() == [[False, True, True], [True, True, False]]
    assert not lesion_of(torch.zeros(2, 3), "one").any()


@pytest.mark.parametrize("value", [0.4, 0.6, -1.0, 1.5])
def test_lesion_mask_that_nobody_can_read_is_refused(value):
    label = torch.zeros(2, 3)
    label[1, 1] = value
    with pytest.raises(ValueError, match=f"one has a lesion mask with voxels of {value:g}, expected whole numbers"):
        lesion_of(label, "one")


@pytest.mark.data
@needs_data
def test_no_alarm_on_real_brains():
    data = Path(DATA)
    slices = sorted((data / "soop2d").glob("*/*_flair.nii.gz"))[::10]
    volumes = sorted((data / "open_ms").glob("*/*_flair.nii.gz")) + sorted((data / "open_ms").glob("*/*_t[12].nii.gz"))
    assert len(slices) == 60 and len(volumes) == 6
    for path in slices + volumes:
        image = scan_of(nib.load(path).dataobj)
        assert sign_of_skull(image, brain_mask_of(image)) is None, path.name


@pytest.mark.data
@needs_data
@pytest.mark.parametrize("number", [1, 17])
@pytest.mark.parametrize("size", [1.0, 0.7])
def test_alarm_on_made_heads(number, size):
    path = Path(DATA) / f"label_maps/training_seg_{number:02d}.nii.gz"
    labels = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj).astype(int)[20:-20, 10:-10, 100:220:4]
    intensity = np.full(1000, 90.0)
    intensity[500:], intensity[515], intensity[[4, 5, 14, 15, 24, 43, 44]] = 100, 12, 20
    intensity[0] = 0
    voxels = ndimage.zoom(intensity[labels], (size, size, 1), order=1)
    image = scan_of(voxels, (1, 1, 4))
    found = sign_of_skull(image, brain_mask_of(image))
    assert ("ml, " if size == 1 else "a bright rim") in found
    brain = ndimage.zoom(np.where(labels < 500, intensity[labels], 0), (size, size, 1), order=1)
    assert sign_of_skull(scan_of(brain, (1, 1, 4)), brain_mask_of(scan_of(brain))) is None
