"""Slices and volumes in, named channels out; and what is said of scans unlike the training's."""

import math
import re

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scripts.inference.inferer import IterMaskInferer, window
from scripts.method.itermask import IterMask
from scripts.tools.phantoms import phantom


class TestInferer:
    @pytest.fixture
    def network(self, small_network):
        """Random parameters, and a threshold that part of the brain exceeds."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return IterMask(small_network, image_size=16, radius=2, threshold=20.0).eval()

    @pytest.fixture
    def scan(self):
        arrays = phantom(5, shape=(40, 48, 7), lesion="bright")
        return torch.from_numpy(np.stack([arrays["flair"].astype(np.float32) / 100, arrays["mask"]]))[None]

    def test_volume_is_its_slices(self, network, scan):
        infer = IterMaskInferer(outputs=("mask", "anomaly_map"), batch_size=3)
        whole = infer(scan, network)
        slices = torch.cat([infer(scan[..., k], network) for k in range(7)])
        torch.testing.assert_close(whole[0].movedim(-1, 0), slices, rtol=0, atol=1e-5)

    def test_outputs_come_in_the_asked_order(self, network, scan):
        names = ("iterations", "reconstruction", "anomaly_map", "mask")
        found = IterMaskInferer(outputs=names)(scan, network)
        assert found.shape == (1, 4, 40, 48, 7)
        for channel, name in enumerate(names):
            alone = IterMaskInferer(outputs=[name])(scan, network)
            torch.testing.assert_close(found[:, channel : channel + 1], alone, rtol=0, atol=1e-5)

    def test_empty_slices_are_skipped(self, network, scan):
        scan[..., 2] = 0
        found = IterMaskInferer(outputs=("mask", "iterations"))(scan, network)
        assert not found[..., 2].any() and (found[:, 1, :, :, 3] > 0).all()

    def test_options_reach_the_refinement(self, network, scan):
        sizes = [float(IterMaskInferer(threshold_scale=s)(scan, network).sum()) for s in (0.001, 1, 10)]
        assert sizes[0] > sizes[1] > sizes[2]
        counts = [
            float(IterMaskInferer(["iterations"], max_iterations=n, tolerance=0)(scan, network).max()) for n in (1, 3)
        ]
        assert counts[0] < counts[1]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"tolerance": 10}, "did you pass a percentage"),
            ({"max_iterations": 0}, "`max_iterations` must be a whole number from 1"),
            ({"threshold_scale": 0}, "`threshold_scale` must be a number above 0"),
        ],
    )
    def test_bad_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            IterMaskInferer(**options)

    def test_wrong_channels(self, network):
        with pytest.raises(ValueError, match="check `modalities`"):
            IterMaskInferer()(torch.zeros(1, 3, 16, 16), network)


def test_inferer_leaves_arrays_without_meta_data_as_they_are(model):
    volume = torch.randn(1, 2, 32, 48, 3, generator=torch.Generator().manual_seed(0))
    volume[:, 1] = 1
    model.field_of_view.fill_(10.0)
    model.image_size = 32
    result = IterMaskInferer()(volume, model)
    assert result.shape == (1, 1, 32, 48, 3) and result.any()


@pytest.mark.parametrize(
    ("planes", "message"),
    [
        ([0.0, 20.0], None),
        ([-30.0, -12.0], "scan.nii.gz: 2 of 4 axial slices lie more than 10 mm from those .*z = -30 to -12 mm"),
        ([math.inf, -math.inf], None),
    ],
)
def test_slices_far_from_those_of_training_are_told(model, planes, message, caplog):
    affine = torch.diag(torch.tensor([1.0, 1.0, 3.0, 1.0]))
    affine[2, 3] = -10
    volume = torch.zeros(1, 2, 32, 32, 6)
    volume[:, 1, 8:24, 8:24, 1:5] = 1  # at -7, -4, -1 and 2 mm
    model.planes.copy_(torch.tensor(planes))
    IterMaskInferer()(MetaTensor(volume, affine=affine, meta={"filename_or_obj": "scan.nii.gz"}), model)
    assert bool(caplog.records) == bool(message)
    if message:
        assert re.search(message, caplog.text)


def test_small_areas_are_dropped_on_request():
    class Marks(torch.nn.Module):
        modalities, image_size = 1, 16

        def map_threshold(self, threshold_scale):
            return threshold_scale

        def refine(self, image, brain_mask, **options):
            mask = torch.zeros_like(brain_mask)
            mask[..., 2:5, 2:5] = mask[..., 10, 10] = mask[..., 11, 11] = True
            return mask, image, image, torch.ones(len(image), dtype=torch.int64)

    slices = torch.ones(2, 2, 16, 16)
    sizes = {
        least: IterMaskInferer(least_pixels=least)(slices, Marks()).sum(dim=(1, 2, 3)).tolist()
        for least in (0, 2, 3, 9, 10)
    }
    assert sizes == {0: [11, 11], 2: [11, 11], 3: [9, 9], 9: [9, 9], 10: [0, 0]}


class Sees(torch.nn.Module):
    """Stands for the method: remembers what it sees, and marks all of the brain."""

    modalities = 1
    field_of_view = torch.zeros(2)
    planes = torch.tensor([float("inf"), -float("inf")])

    def __init__(self, image_size):
        super().__init__()
        self.image_size = image_size
        self.seen = {}

    def map_threshold(self, threshold_scale):
        return threshold_scale

    def refine(self, image, brain_mask, **options):
        self.seen.update(image=image, brain_mask=brain_mask)
        return brain_mask, image, image, torch.ones(len(image), dtype=torch.int64)


@pytest.mark.parametrize("axis", [2, 3])
def test_mirrored_brain_is_mirrored_on_the_grid_of_the_network(axis):
    image = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(0))  # 40 / 24: no center on a border
    slices, infer, network = torch.cat([image, (image > 0.5).float()], dim=1), IterMaskInferer(), Sees(24)
    mask, brain = infer(slices, network), network.seen["brain_mask"]
    mirrored = infer(slices.flip(axis), network)
    assert torch.equal(network.seen["brain_mask"], brain.flip(axis)) and torch.equal(mirrored, mask.flip(axis))


def test_mask_and_anomaly_map_end_where_the_brain_of_the_input_does():
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 50), torch.linspace(-1, 1, 40), indexing="ij")
    brain = (rows**2 + columns**2 < 0.7)[None, None]
    slices = torch.cat([torch.ones_like(brain, dtype=torch.float32), brain.float()], dim=1)
    mask, anomaly_map = IterMaskInferer(["mask", "anomaly_map"])(slices, Sees(16))[:, :, None].unbind(dim=1)
    for found in (mask, anomaly_map):
        assert not found[~brain].any() and (found[brain] == 1).float().mean() > 0.9


def test_room_around_a_scan_is_filled_with_the_background_of_scaled_scans():
    volume = torch.zeros(1, 2, 20, 20, 3)
    volume[:, 0] = -3
    volume[:, :, 5:15, 5:15] = 1
    volume[0, 0, 9, 9, 1] = -7  # a voxel of the brain that is darker than all around it
    network = Sees(40)
    network.field_of_view = torch.tensor([40.0, 40.0])
    infer = IterMaskInferer()
    found = infer(MetaTensor(volume, affine=torch.eye(4)), network)
    assert found.shape == (1, 1, 20, 20, 3) and torch.equal(found[0, 0] > 0, volume[0, 1] > 0)
    assert network.seen["image"].shape == (3, 1, 40, 40)
    assert torch.equal(network.seen["brain_mask"].sum((1, 2, 3)), torch.tensor([100] * 3))
    assert (network.seen["image"][~network.seen["brain_mask"]] == -3).all()
    assert network.seen["image"][network.seen["brain_mask"]].unique(return_counts=True)[1].tolist() == [1, 299]


def test_lesion_network_sees_volumes_as_a_whole_and_slices_as_volumes_of_one_slice(lesion_network):
    arrays = phantom(5, shape=(40, 48, 40), lesion="bright")
    volume = torch.from_numpy(np.stack([arrays["flair"].astype(np.float32), arrays["mask"]]))[None]
    infer = IterMaskInferer(outputs=("mask", "anomaly_map", "reconstruction", "iterations"))
    found = infer(MetaTensor(volume, affine=torch.diag(torch.tensor([3.0, 3, 3, 1]))), lesion_network)
    brain = volume[0, 1] > 0
    assert found.shape == (1, 4, 40, 48, 40) and not found[0, :2, ~brain].any()
    assert 0 <= found[0, 1].min() and found[0, 1].max() <= 1 and torch.isfinite(found).all()
    slices = infer(volume[..., 20], lesion_network)
    alone = infer(
        MetaTensor(volume[..., 20:21], affine=torch.diag(torch.tensor([1.25, 1.25, 1.25, 1]))), lesion_network
    )
    torch.testing.assert_close(slices, alone.as_tensor()[..., 0], rtol=0, atol=1e-5)


class Brightest(torch.nn.Module):
    """Stands for the method: marks what is bright on the grid that it is shown."""

    modalities, image_size = 1, 24
    field_of_view = torch.tensor([30.0, 24.0])
    planes = torch.tensor([float("inf"), -float("inf")])

    def refine(self, image, brain_mask, **options):
        return brain_mask & (image > 2), image, image, torch.ones(len(image), dtype=torch.int64)

    def map_threshold(self, threshold_scale=1.0):
        return 2.0 * threshold_scale


def scan():
    """A brain with a bright square, (1, 2, 40, 36, 5): image and brain mask."""
    rows, columns = np.mgrid[-1:1:40j, -1:1:36j]
    brain = np.repeat((rows**2 + columns**2 < 0.25)[..., None], 5, axis=2)
    brain[..., 0] = brain[..., 4] = False
    image = brain * np.random.default_rng(0).uniform(0.5, 1.5, brain.shape)
    image[18:24, 15:20, 1:4] = 3
    return torch.from_numpy(np.stack([image, brain]))[None].float()


def marked(volume):
    return IterMaskInferer()(MetaTensor(volume, affine=torch.eye(4)), Brightest()).as_tensor()


@pytest.mark.parametrize(
    "padding", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (3, 2, 5, 1), (2, 1, 7, 30), (-5, -3, -4, -6)]
)
def test_background_around_a_scan_changes_nothing(padding):
    volume = scan()
    grown = torch.nn.functional.pad(volume, (0, 0, *padding))
    back = torch.nn.functional.pad(marked(grown), (0, 0, *(-number for number in padding)))
    assert marked(volume).any() and torch.equal(back, marked(volume))


def test_a_stray_voxel_far_from_the_brain_does_not_move_the_window(caplog):
    volume = scan()
    wide = torch.nn.functional.pad(volume, (0, 0, 0, 60, 0, 60))
    stray = wide.clone()
    stray[0, :, -1, -1, 2] = 1
    assert torch.equal(marked(stray), marked(wide)) and not caplog.records


def test_brain_that_the_window_cuts_is_told(caplog):
    volume = torch.nn.functional.interpolate(scan(), scale_factor=(2, 2, 1), mode="nearest")
    assert marked(volume).any()
    assert "volume: the window of the network leaves out" in caplog.text and "shows 30 x 24 mm" in caplog.text


@pytest.mark.parametrize(
    ("field_of_view", "expected"),
    [
        ((0, 0), [0, 0, 0, 0]),  # unknown
        ((40, 60), [-2, 2, 3, -3]),  # the slice's own: the brain still comes to the center
        ((39.5, 60.5), [-2, 2, 3, -3]),  # nearly
        (
            (20, 30),
            [-7, -3, -2, -8],
        ),  # rows 2 to 11 and columns 7 to 16 around a brain in rows 4 to 9, columns 10 to 13
        ((40, 90), [3, 7, 3, -3]),
    ],
)
def test_window_is_the_field_of_view_around_the_brain(field_of_view, expected):
    brain = torch.zeros(20, 20, 5, dtype=torch.bool)
    brain[4:10, 10:14, 2] = True
    assert window(brain, [2, 3, 1], field_of_view) == [0, 0, *expected]
    assert window(torch.zeros_like(brain), [2, 3, 1], [10, 10]) == [0] * 6
