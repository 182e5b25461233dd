"""The brain mask and the scaling of intensities, by their properties and their errors."""

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import write_nifti
from monai.data import MetaTensor
from monai.transforms import LoadImage
from scripts.data.brain import brain_mask_of
from scripts.data.transforms import (
    BrainMaskd,
    ResampleSliced,
    ScaleBrainIntensityd,
    ScanReader,
    SlicesOfScand,
    StandardizeBraind,
    scale_brain_intensity,
)


@pytest.fixture
def scan():
    """A scan of two modalities (2, 12, 14, 6), 0 outside the brain, and its brain mask."""
    random = torch.Generator().manual_seed(3)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 12), torch.linspace(-1, 1, 14), indexing="ij")
    brain = (rows**2 + columns**2 < 0.7)[None, ..., None].expand(1, 12, 14, 6)
    values = 50 + 100 * torch.rand(2, 12, 14, 6, generator=random)
    values[1] = values[1] ** 1.5
    return values * brain, brain


@pytest.mark.parametrize(("lower", "upper"), [(0.02, 0.9), (0.0, 1.0), (0.25, 0.5)])
def test_quantiles_of_the_brain_become_minus_3_and_3(scan, lower, upper):
    image, brain = scan
    scaled = scale_brain_intensity(image, brain, upper, lower)
    assert scaled.dtype == torch.float32 and scaled.shape == image.shape
    for channel in scaled:
        values = channel[brain[0]].double().numpy()
        np.testing.assert_allclose(np.quantile(values, [lower, upper]), [-3, 3], atol=1e-5)
        assert upper == 1 or values.max() > 3.01
        assert lower == 0 or values.min() < -3.01


def test_background_is_minus_3_whatever_it_was(scan):
    image, brain = scan
    expected = scale_brain_intensity(image, brain)
    filled = torch.where(brain, image, torch.tensor(77.0))
    assert (expected[:, ~brain[0]] == -3).all()
    assert torch.equal(scale_brain_intensity(filled, brain), expected)


@pytest.mark.parametrize("factor", [1e-4, 0.37, 20_000])
@pytest.mark.parametrize("lower_over_volume", [False, True])
def test_scaling_does_not_depend_on_the_scale_of_a_modality(scan, factor, lower_over_volume):
    image, brain = scan
    options = {"lower_over_volume": lower_over_volume}
    expected = scale_brain_intensity(image, brain, **options)
    changed = image * torch.tensor([factor, 3.0])[:, None, None, None]
    torch.testing.assert_close(scale_brain_intensity(changed, brain, **options), expected, rtol=0, atol=1e-4)


def test_lower_quantile_over_the_volume_is_the_published_formula(scan):
    image, brain = scan
    found = scale_brain_intensity(image, brain, lower_over_volume=True)
    for channel, scaled in zip(image.double().numpy(), found, strict=True):
        upper = np.quantile(channel[brain[0].numpy()], 0.9)
        np.testing.assert_allclose(scaled.numpy(), channel * 6 / upper - 3, atol=1e-5)
    assert not torch.allclose(found, scale_brain_intensity(image, brain), atol=0.5)


def test_transforms_are_the_functions_and_keep_the_meta_data(scan):
    image, brain = scan
    affine = torch.diag(torch.tensor([1.0, 2, 3, 1], dtype=torch.float64))
    data = {"image": MetaTensor(image, affine=affine), "case": "one", "other": 1}
    found = ScaleBrainIntensityd("image", upper_fraction=0.8)(BrainMaskd("image")(data))
    assert torch.equal(found["brain_mask"].as_tensor(), brain)
    assert torch.equal(found["image"].as_tensor(), scale_brain_intensity(image, brain, upper_fraction=0.8))
    assert torch.equal(found["image"].affine, affine) and torch.equal(found["brain_mask"].affine, affine)
    assert found["other"] == 1 and "brain_mask" not in data and torch.equal(data["image"].as_tensor(), image)


def test_brain_is_where_any_modality_differs_from_its_background():
    image = torch.zeros(2, 6, 7)
    image[1] = 5
    image[0, 2, 3], image[1, 3, 4], image[1, 4, 4] = -1, 0, 7
    expected = torch.zeros(1, 6, 7, dtype=torch.bool)
    expected[0, [2, 3, 4], [3, 4, 4]] = True
    assert torch.equal(brain_mask_of(image), expected)
    given = torch.tensor([0, 0.4, 0.6, 1, 1, 0, 0]).expand(1, 6, 7)
    assert torch.equal(brain_mask_of(image, given), (given > 0.5) & expected)
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(brain_mask_of(noise, given), given > 0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scan_with_voxels_that_are_no_number(scan, value):
    image = scan[0].clone()
    image[1, 0, 0, 0] = value
    with pytest.raises(ValueError, match="one has NaN or infinite voxels"):
        BrainMaskd("image")({"image": image, "case": "one"})


def test_brain_mask_with_voxels_that_are_no_number(scan):
    mask = scan[1].float()
    mask[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="one has a brain mask with NaN or infinite voxels"):
        BrainMaskd("image")({"image": scan[0], "brain_mask": mask, "case": "one"})


def test_large_finite_voxels_are_no_reason_to_refuse(scan):
    image = scan[0] * 1e35  # their float32 sum is infinite
    torch.testing.assert_close(
        scale_brain_intensity(image, brain_mask_of(image)), scale_brain_intensity(*scan), rtol=0, atol=1e-4
    )


def test_scan_without_a_brain(scan):
    with pytest.raises(ValueError, match="one has no voxel that differs from its background"):
        BrainMaskd("image")({"image": torch.zeros(1, 4, 4, 4), "case": "one"})
    with pytest.raises(ValueError, match="the image has a brain mask that is empty, or marks background"):
        BrainMaskd("image")({"image": scan[0], "brain_mask": torch.zeros(1, 12, 14, 6)})
    with pytest.raises(ValueError, match=r"one has a brain mask of shape \[12, 14, 5\], but voxels \[12, 14, 6\]"):
        BrainMaskd("image")({"image": scan[0], "brain_mask": torch.ones(1, 12, 14, 5), "case": "one"})


def test_modality_of_one_intensity_is_named(scan):
    image, brain = scan[0].clone(), scan[1]
    image[1] = 5.0 * brain
    with pytest.raises(ValueError, match="one has a brain of constant intensity in channel 1"):
        ScaleBrainIntensityd("image")({"image": image, "brain_mask": brain, "case": "one"})


@pytest.mark.parametrize(("lower", "upper"), [(0.02, 90), (2, 0.9), (-0.1, 0.9), (0.02, float("nan")), (0.5, 0.5)])
def test_bad_fractions(lower, upper):
    with pytest.raises(ValueError, match=f"`upper_fraction` must be .*, got {lower} and {upper}; did you pass percent"):
        ScaleBrainIntensityd("image", upper_fraction=upper, lower_fraction=lower)


def test_reader_puts_modalities_on_the_grid_of_the_first(tmp_path):
    random = np.random.default_rng(0)
    first, second = random.integers(0, 99, (2, 5, 6, 7)).astype(np.int16)
    affine = np.array([[0, 2.0, 0, 3], [-1, 0, 0, 4], [0, 0, 3, 5], [0, 0, 0, 1]])
    rounded = affine + 1e-4
    rounded[3] = affine[3]
    paths = [
        write_nifti(tmp_path / "first.nii", first, affine),
        write_nifti(tmp_path / "second.nii.gz", second[..., None], rounded),
    ]
    image = LoadImage(reader=ScanReader(), ensure_channel_first=True)([str(path) for path in paths])
    np.testing.assert_array_equal(image, np.stack([first, second]))
    np.testing.assert_array_equal(image.affine, affine)
    alone = LoadImage(reader=ScanReader(), ensure_channel_first=True)(str(paths[1]))
    np.testing.assert_array_equal(alone, second[None])
    np.testing.assert_array_equal(alone.affine, nib.load(paths[1]).affine)


@pytest.mark.parametrize("at", [0.3, 0.9])
def test_compressed_file_whose_content_changed_is_named(tmp_path, at):
    voxels = np.random.default_rng(0).integers(0, 9999, (40, 40, 40)).astype(np.int16)
    path = write_nifti(tmp_path / "scan.nii.gz", voxels)
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="scan.nii.gz is damaged"):
        LoadImage(reader=ScanReader())(str(path))


def test_scan_is_standardized_by_its_brain_and_0_outside(scan):
    image, brain = MetaTensor(scan[0], affine=np.eye(4)), scan[1]
    found = StandardizeBraind("image")({"image": image, "brain_mask": brain, "case": "a"})["image"]
    inside = found[:, brain[0]]
    assert float(inside.median(dim=1).values.abs().max()) < 1e-5 and not found[:, ~brain[0]].any()
    assert float((1.4826 * inside.abs().median(dim=1).values - 1).abs().max()) < 1e-4
    with pytest.raises(ValueError, match="a has one intensity in half of its brain"):
        StandardizeBraind("image")({"image": torch.ones_like(image), "brain_mask": brain, "case": "a"})


SHAPE, SPACING = (40, 36, 30), (2.0, 2.5, 3.0)


def volume(lesion=()):
    """A scan that is brain all over; voxels tell their place; lesions in the named axial slices."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = (-10, 5, 7)
    places = torch.stack(torch.meshgrid(*map(torch.arange, SHAPE), indexing="ij"))
    label = torch.zeros(1, *SHAPE)
    for k, voxels in lesion:
        label[0, 0, :voxels, k] = 1
    volumes = {"image": places.float(), "brain_mask": torch.ones(1, *SHAPE, dtype=torch.bool), "label": label}
    return {"case": "a", "certain": False, **{key: MetaTensor(v, affine=affine) for key, v in volumes.items()}}


@pytest.mark.parametrize(
    ("plane", "axes", "field_of_view", "position"),
    [
        ("axial", (0, 1, 2), [80, 90], 7 + 4 * 3),
        ("coronal", (0, 2, 1), [80, 90], 5 + 4 * 2.5),
        ("sagittal", (2, 1, 0), [90, 90], -10 + 4 * 2),
    ],
)
def test_slices_of_a_plane_and_where_they_lie(plane, axes, field_of_view, position):
    slices = SlicesOfScand("image", planes=[plane])(volume())
    rows, columns, across = axes
    assert len(slices) == SHAPE[across] and [part["slice"] for part in slices] == list(range(SHAPE[across]))
    part = slices[4]
    assert part["image"].shape == (3, SHAPE[rows], SHAPE[columns]) and (part["image"][across] == 4).all()
    assert (part["image"][rows].diff(dim=0) == 1).all() and (part["image"][columns].diff(dim=1) == 1).all()
    assert part["plane"] == plane and part["field_of_view"] == field_of_view and part["position"] == position
    assert part["case"] == "a" and type(part["image"]) is torch.Tensor and part["brain_mask"].dtype == torch.bool


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"selection": "healthy"}, [k for k in range(30) if k not in (3, 9)]),
        ({"selection": "healthy", "slice_range": [2, 6]}, [2, 4, 5]),
        ({"selection": "healthy", "slice_distance": 8.0}, [k for k in range(0, 30, 3) if k not in (3, 9)]),
        ({"selection": "largest_lesion"}, [9]),
        ({"selection": "largest_lesion", "slice_range": [0, 5]}, [3]),
        ({"selection": "largest_lesion", "slice_range": [4, 9]}, []),
    ],
    ids=str,
)
def test_selection_range_and_distance_of_slices(options, expected):
    found = SlicesOfScand("image", **options)(volume(lesion=[(3, 5), (9, 8)]))
    assert [part["slice"] for part in found] == expected


def test_slices_with_little_brain_and_planes_with_little_of_the_head_are_left_out():
    scan = volume()
    scan["brain_mask"][..., :10] = False
    assert [part["slice"] for part in SlicesOfScand("image")(scan)][0] == 10
    slab = {key: value[..., :5] if hasattr(value, "ndim") else value for key, value in volume().items()}
    found = SlicesOfScand("image", planes=["axial", "coronal", "sagittal"])(slab)
    assert [part["plane"] for part in found] == ["axial"] * 5


def test_range_that_leaves_a_scan_is_refused():
    with pytest.raises(ValueError, match="a has 30 slices, so `slice_range` .0, 31. leaves it"):
        SlicesOfScand("image", slice_range=[0, 31])(volume())


def test_resampled_slice_keeps_the_size_of_its_brain_in_the_middle_of_the_canvas():
    brain = torch.zeros(1, 60, 50, dtype=torch.bool)
    brain[:, 10:40, 5:45] = True
    data = {"image": torch.full((2, 60, 50), 3.0), "brain_mask": brain, "field_of_view": [60, 100]}
    found = ResampleSliced("image", size=[64, 96], pixel_size=1.25)(data)
    mask = found["brain_mask"][0] > 0
    assert found["image"].shape == (2, 64, 96)
    height, width = (int(mask.any(dim=1 - axis).sum()) for axis in (0, 1))
    assert abs(height - 30 / 1.25) <= 1 and abs(width - 80 / 1.25) <= 1
    rows = mask.any(dim=1).nonzero()[:, 0]
    assert abs(float(rows.float().mean()) - 31.5) <= 1
    torch.testing.assert_close(found["image"], 3.0 * mask.expand(2, -1, -1))
