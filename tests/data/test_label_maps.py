"""Properties of volumes made from label maps."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from scripts.data.label_maps import CONTRASTS, Limits, RandLabelToImaged, brain_mask_of_labels, made_volume

SHAPE = (40, 36, 44)
PLAIN = Limits(0, 0, 0, flip_probability=0, thick_probability=0, defects_probability=0, bias=0, rim=0)  # nothing breaks


def small_head() -> MetaTensor:
    """Skull, fluid, cortex, white matter with a lesion on one side, ventricles: (1, 40, 36, 44)."""
    labels = np.zeros(SHAPE, dtype=np.int16)
    for depth, label in ((1, 515), (4, 24), (5, 3), (8, 2)):
        labels[tuple(slice(depth, size - depth) for size in SHAPE)] = label
    labels[17:20, 12:24, 18:26], labels[20:23, 12:24, 18:26] = 4, 43
    labels[10:13, 12:16, 28:32] = 25
    return MetaTensor(torch.from_numpy(labels)[None])


def made(seed=0, label_map=None, contrast="flair", **changes):
    transform = RandLabelToImaged(contrast=contrast, limits=PLAIN._replace(**changes))
    return transform.set_random_state(seed)({"label_map": small_head() if label_map is None else label_map})


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_a_volume_depends_on_the_seed_alone(contrast):
    moving = {name: 0.5 for name in ("flip_probability", "thick_probability", "defects_probability")}
    first, second, other = (made(seed, None, contrast, rotation=15, elastic=1, **moving) for seed in (3, 3, 4))
    for key in ("image", "brain_mask", "label_map"):
        assert torch.equal(first[key], second[key])
    assert first["image"].shape != other["image"].shape or not torch.equal(first["image"], other["image"])
    assert first["image"].dtype == torch.float32 and first["brain_mask"].dtype == torch.bool
    assert torch.isfinite(first["image"]).all() and (first["image"] >= 0).all()


def test_one_transform_draws_anew_each_time():
    transform = RandLabelToImaged(limits=PLAIN).set_random_state(0)
    first, second = (transform({"label_map": small_head()})["image"] for _ in range(2))
    assert first.shape == second.shape and not torch.equal(first, second)


def test_the_global_random_state_is_untouched():
    numbers, tensors = np.random.get_state()[1].copy(), torch.get_rng_state()
    made(1, rotation=5, elastic=1, defects_probability=1)
    np.testing.assert_array_equal(np.random.get_state()[1], numbers)
    assert torch.equal(torch.get_rng_state(), tensors)


def test_the_input_is_not_changed():
    label_map = small_head()
    made(1, label_map, elastic=1)
    assert torch.equal(label_map, small_head())


def test_without_defects_the_brain_mask_is_tissue_ventricles_and_narrow_sulci():
    result = made(closing=(0, 0))
    labels = result["label_map"]
    assert torch.equal(result["brain_mask"], (labels > 0) & (labels < 500) & (labels != 24))
    assert torch.equal(result["brain_mask"], result["image"] > 0)


def test_closing_fills_narrow_sulci_alone():
    labels = np.zeros((30, 32, 34), dtype=np.int16)
    labels[...] = 24
    labels[6:24, 6:26, 6:28] = 3
    labels[14:16, 6:18, 6:28] = 24
    closed = brain_mask_of_labels(labels, 8.0)
    assert closed[14:16, 10:17, 12:20].all() and not closed[:3].any()


def test_defects_stay_at_the_rim():
    exact, broken = made(1, closing=(6, 6)), made(1, closing=(6, 6), defects_probability=1, defects=1.5)
    assert exact["brain_mask"].shape == broken["brain_mask"].shape
    wrong = exact["brain_mask"] != broken["brain_mask"]
    assert 0 < wrong.float().mean() < 0.2
    assert not wrong[:, 14:-14, 14:-14, 14:-14].any()


@pytest.mark.parametrize(
    "contrast, order", [("flair", ("fluid", "white", "cortex")), ("t1", ("fluid", "cortex", "white"))]
)
@pytest.mark.parametrize("seed", range(5))
def test_tissues_come_in_the_order_of_the_contrast(contrast, order, seed):
    result = made(seed, contrast=contrast)
    labels = {"fluid": (4, 43), "white": (2,), "cortex": (3,)}
    level = {name: result["image"][np.isin(result["label_map"], values)].median() for name, values in labels.items()}
    assert level[order[0]] < level[order[1]] and level[order[0]] < level[order[2]]
    if contrast == "t1":
        assert level["cortex"] < level["white"]


def test_periventricular_brightening_is_where_it_belongs():
    plain, bright = made(rim=0), made(rim=1.5)
    change = (bright["image"] - plain["image"])[0]
    assert change[bright["label_map"][0] == 2].max() > 0.1
    assert change[:6].abs().max() < 0.02 and change[:, :4].abs().max() < 0.02


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_are_interpolated_and_the_grid_stays(axis):
    transform = RandLabelToImaged(limits=PLAIN).set_random_state(0)
    transform({"label_map": small_head()})
    draw = transform.draw._replace(noise=0.0, slice_axis=axis)
    thin, thick = (made_volume(small_head()[0].numpy(), draw._replace(thickness=mm))[0] for mm in (1.0, 6.0))
    assert thin.shape == thick.shape
    bends = [np.diff(volume[10:-10, 10:-10, 10:-10], 2, axis) for volume in (thin, thick)]
    straight = [(np.abs(bend) < 1e-5).mean() for bend in bends]  # between the middles of slices
    assert straight[0] < 0.1 and straight[1] > 0.5


def test_any_orientation_gives_the_same_volume_in_ras():
    head = small_head()
    affine = torch.tensor([[-1.0, 0, 0, SHAPE[0] - 1], [0, 0, 1.0, 0], [0, -1.0, 0, SHAPE[2] - 1], [0, 0, 0, 1]])
    turned = MetaTensor(head.as_tensor().flip(1).permute(0, 1, 3, 2).flip(2).contiguous(), affine=affine)
    one, two = made(0, head), made(0, Orientation("RAS", labels=None)(turned))
    assert torch.equal(one["image"].as_tensor(), two["image"].as_tensor())
    np.testing.assert_allclose(one["image"].affine, two["image"].affine)


def test_the_crop_keeps_scanner_coordinates():
    result = made(closing=(0, 0))
    origin = np.asarray(result["image"].affine)[:3, 3].astype(int)
    shape = result["image"].shape[1:]
    part = small_head()[0][tuple(slice(o, o + n) for o, n in zip(origin, shape, strict=True))]
    assert torch.equal(part, result["label_map"][0].as_tensor())


def test_unknown_contrast_is_refused():
    with pytest.raises(ValueError, match="`contrast` must be one of flair"):
        RandLabelToImaged(contrast="pet")


@pytest.mark.parametrize(
    "label_map, words",
    [
        (torch.zeros(4, 5, 6), r"must have shape \(1, X, Y, Z\), got \(4, 5, 6\)"),
        (torch.zeros(1, 4, 5, 6), "no brain in it"),
        (torch.full((1, 4, 5, 6), 515), "no brain in it"),
        (torch.full((1, 4, 5, 6), 3000), "labels must be 0 to 1023"),
        (MetaTensor(torch.ones(1, 4, 5, 6), affine=torch.diag(torch.tensor([2.0, 2, 2, 1]))), "voxels of 1 mm"),
    ],
)
def test_bad_label_maps_are_refused(label_map, words):
    with pytest.raises(ValueError, match=words):
        made(0, MetaTensor(label_map))
