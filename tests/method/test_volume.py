"""Lesions in whole volumes, with networks whose answer is known."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from scripts.method import volume as v
from scripts.method.lesion_network import BACKGROUND, UNIT, LesionNetwork
from torch import nn


class Bright(nn.Module):
    """Sees a lesion where a slice is brighter than 4 deviations of the brain, and takes what it sees as healthy."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, inputs):
        image = inputs[:, :-1]
        self.seen.append(inputs)
        logit = 4 * (image.amax(dim=1, keepdim=True) * UNIT - 4)
        return torch.cat([image, logit], dim=1)


def lesion_network(network, modalities=("flair",)):
    model = LesionNetwork(lambda in_channels, out_channels: network, modalities)
    for name, value in zip(model.thresholds, (-0.5, 0.5, -0.5, 0.5), strict=True):
        getattr(model, name).fill_(value)
    return model.eval()


def ball(shape, center, radius):
    places = np.stack(np.indices(shape), axis=-1) - center
    return torch.from_numpy(np.linalg.norm(places, axis=-1) <= radius)


@pytest.fixture
def head():
    """A brain of 80 mm with noise of deviation 1 around 100, and a lesion of 12 mm, 8 brighter; voxels of 2 mm."""
    shape = (48, 52, 44)
    brain = ball(shape, (24, 26, 22), 20)
    lesion = ball(shape, (32, 30, 24), 6) & brain
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 0.7)
    image = torch.from_numpy(100 + noise / noise.std()).float() + 8 * lesion
    return torch.where(brain, image, 0.0)[None], brain[None], lesion[None]


def dice(one, other):
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def test_lesion_is_found_and_the_rest_is_not(head):
    image, brain, lesion = head
    found = v.segment_volume(lesion_network(Bright()), image, brain, (2, 2, 2))
    assert dice(found.mask, lesion) > 0.9 and found.mask.dtype == torch.bool
    assert not found.probability[~brain].any() and found.probability[lesion].mean() > 0.9
    assert torch.equal(found.reconstruction[~brain], image[~brain])
    assert float((found.reconstruction - image)[brain].abs().mean()) < 1  # smoothed by the way there and back


def test_scale_of_intensities_and_background_change_nothing(head):
    image, brain, _ = head
    expected = v.segment_volume(lesion_network(Bright()), image, brain, (2, 2, 2)).mask
    other = v.segment_volume(lesion_network(Bright()), torch.where(brain, 3 * image - 50, -7.0), brain, (2, 2, 2)).mask
    assert dice(other, expected) > 0.999
    padding = (3, 0, 5, 1, 0, 2)
    padded = [nn.functional.pad(volume, padding) for volume in (image, brain)]
    padded = v.segment_volume(lesion_network(Bright()), *padded, (2, 2, 2)).mask
    assert torch.equal(padded[:, : image.shape[1], 5:-1, 3:], expected)


def test_modalities_are_standardized_one_by_one(head):
    image, brain, lesion = head
    both = torch.cat([image, 1000 - 5 * image]) * brain
    network = Bright()
    found = v.segment_volume(lesion_network(network, ("flair", "t2")), both, brain, (2, 2, 2))
    assert dice(found.mask, lesion) > 0.9 and found.reconstruction.shape == both.shape
    inside = network.seen[0][:, 0] != BACKGROUND
    assert abs(float(network.seen[0][:, 0][inside].median())) < 0.2 > abs(float(network.seen[0][:, 1][inside].median()))


def test_network_sees_slices_of_three_planes_with_the_brain_inside(head):
    image, brain, _ = head
    network = Bright()
    v.segment_volume(lesion_network(network), image, brain, (2, 2, 2), batch_size=16)
    assert all(len(seen) <= 16 and not {*seen.shape[2:]} - {16, 32, 48, 64, 80} for seen in network.seen)
    slices = sum(len(seen) for seen in network.seen)
    assert slices == pytest.approx(5 * 80 / 1.25, abs=10)  # two planes are seen mirrored too
    hidden = torch.cat([seen[:, 1].flatten() for seen in network.seen])
    shown = torch.cat([seen[:, 0].flatten() for seen in network.seen])
    assert torch.equal(hidden > 0, shown != BACKGROUND)  # all of the brain is hidden, and nothing else


@pytest.mark.parametrize("spacing", [0.6, 1.0, 1.7, 5.0])
def test_way_to_the_grid_and_back_keeps_smooth_volumes(spacing):
    size = round(100 / spacing)
    place = (torch.arange(size) - (size - 1) / 2) * spacing
    wave = torch.sin(place / 15)[:, None, None] + torch.cos(place / 18)[None, :, None] + 0 * place[None, None]
    brain = torch.ones(size, size, size, dtype=torch.bool) if size < 70 else torch.zeros(size, size, size) > 0
    if size >= 70:
        brain[10:-10, 10:-10, 10:-10] = True
    grid = v.Grid(brain, (spacing,) * 3)
    small = grid.resample(wave[None])
    assert all(length % v.MULTIPLE == 0 for length in small.shape[1:])
    middle = slice(size // 4, -(size // 4))
    restored = torch.zeros_like(wave)
    restored[tuple(grid.box)] = grid.restore(small)[0]
    inner = restored[middle, middle, middle]
    assert torch.allclose(inner, wave[middle, middle, middle], atol=0.06)


def test_resampling_averages_when_it_shrinks():
    rows = v.resampling_matrix(100, 0.5, 16, 2.0, 25.0)
    assert torch.allclose(rows.sum(dim=1), torch.ones(16), atol=1e-5)
    assert int((rows[8] > 0).sum()) == pytest.approx(8, abs=1)  # as wide as two of the larger voxels
    same = v.resampling_matrix(9, 1.0, 9, 1.0, 4.0)
    assert torch.allclose(same, torch.eye(9), atol=1e-6)


def test_scale_is_median_and_robust_deviation():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0])
    image = torch.zeros(1, 5, 2, 1)
    image[0, :, 0, 0] = values
    normal = torch.zeros(5, 2, 1, dtype=torch.bool)
    normal[:, 0] = True
    median, deviation = v.robust_scale(image, normal)
    assert float(median) == 3 and float(deviation) == pytest.approx(1.4826)


def test_hysteresis_keeps_components_that_are_sure_somewhere():
    score = torch.zeros(6, 6, 6)
    score[0, 0, :3], score[0, 0, 1] = 1.0, 3.0
    score[1, 1, 3] = 1.0  # touches by a corner
    score[4, 4, 4] = 1.0
    kept = v.hysteresis(score, 0.5, 2.0)
    assert kept.nonzero().tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [1, 1, 3]]
    assert not v.hysteresis(torch.zeros(3, 3, 3), 0.5, 2.0).any()


def test_what_is_on_both_sides_counts_less():
    brain = torch.ones(20, 20, 20, dtype=torch.bool)
    score = torch.zeros(20, 20, 20)
    score[2:6, 8:12, 8:12], score[14:18, 8:12, 8:12] = 5.0, 5.0
    single = torch.zeros(20, 20, 20)
    single[2:6, 8:12, 8:12] = 5.0
    both, one = (v.take_off_mirrored(values, brain, 0.2, [2.5] * 3)[4, 10, 10] for values in (score, single))
    assert one == 5 and 5 - 0.2 * 5 <= both < 4.9


def test_threshold_scale_is_a_factor_on_the_odds(head):
    image, brain, _ = head
    masks = [
        v.segment_volume(lesion_network(Bright()), image, brain, (2, 2, 2), threshold_scale=scale)
        for scale in (0.2, 1, 5)
    ]
    sizes = [int(found.mask.sum()) for found in masks]
    assert sizes[0] > sizes[1] > sizes[2] > 0
    for scale, found in zip((0.2, 1, 5), masks, strict=True):
        lowest = 1 / (1 + math.exp(0.5 - math.log(scale)))
        assert float(found.probability[found.mask].min()) >= lowest - 1e-3


@pytest.mark.parametrize(
    ("shown", "planes"),
    [
        ((80, 90, 85), ["axial", "coronal", "sagittal"]),
        ((80, 90, 65), ["axial", "coronal", "sagittal"]),
        ((80, 90, 39), ["axial"]),
        ((20, 90, 80), ["sagittal"]),
        ((80, 1, 85), ["coronal"]),
        ((39, 30, 20), ["axial"]),
    ],
)
def test_planes_are_those_that_show_enough_of_the_brain(shown, planes):
    brain = torch.zeros(100, 100, 100, dtype=torch.bool)
    brain[tuple(slice(5, 5 + length) for length in shown)] = True
    assert v.shown_planes(brain, (1, 1, 1)) == planes


def test_slice_of_a_volume_is_segmented_by_its_own_thresholds(head):
    image, brain, lesion = head
    network = Bright()
    model = lesion_network(network)
    found = v.segment_volume(model, image[..., 23:24], brain[..., 23:24], (2, 2, 9))
    assert dice(found.mask, lesion[..., 23:24]) > 0.85 and [len(seen) for seen in network.seen] == [1, 1]
    model.slice_high_threshold.fill_(1000)
    assert not v.segment_volume(model, image[..., 23:24], brain[..., 23:24], (2, 2, 9)).mask.any()


@pytest.mark.parametrize(("part", "shift"), [(0.0, -1.0), (0.005, 0.0), (0.01, math.log(2)), (0.5, 1.0)])
def test_logits_rise_with_the_part_of_the_brain_that_is_lesion(part, shift):
    logit = torch.full((10_000,), -3.0)
    logit[: int(part * 10_000)] = 2.0
    shifts = v.label_shifts(logit, 0.005, 1.0)
    assert shifts[0] == -1 and shifts[-1] == pytest.approx(shift, abs=1e-5)
    assert v.label_shifts(logit, 0.005, 0.0) == [0.0]


def test_mask_grows_with_the_part_that_it_holds_until_it_stands():
    logit = torch.linspace(-8, 2, 10_000)
    shifts = v.label_shifts(logit, 0.15, 1.0)
    assert len(shifts) > 3 and shifts == sorted(shifts)
    part = float((logit + shifts[-1] > 0).float().mean())
    assert shifts[-1] == pytest.approx(math.log(part / 0.15), abs=0.02)


class OneSided(Bright):
    """Sees more on one side of what it is shown."""

    def forward(self, inputs):
        output = super().forward(inputs)
        output[:, -1:] += torch.linspace(-3, 3, inputs.shape[2]).view(1, 1, -1, 1)
        return output


def test_mirrored_head_gives_the_mirrored_mask(head):
    image, brain, _ = head
    mask = v.segment_volume(lesion_network(OneSided()), image, brain, (2, 2, 2)).mask
    mirrored = v.segment_volume(lesion_network(OneSided()), image.flip(1), brain.flip(1), (2, 2, 2)).mask.flip(1)
    assert mask.any() and dice(mask, mirrored) > 0.97


def test_mask_that_is_no_brain_is_told(head):
    image, brain, _ = head
    half = torch.where(torch.arange(48)[None, :, None, None] > 22, image, 0.0)
    with pytest.raises(ValueError, match="one intensity in half of its brain"):
        v.segment_volume(lesion_network(Bright()), half, torch.ones_like(brain), (2, 2, 2))
    with pytest.raises(ValueError, match="brain that vanishes on voxels of 1.25 mm"):
        sparse = brain & (
            torch.stack(torch.meshgrid(*map(torch.arange, brain.shape[1:]), indexing="ij")).sum(0) % 4 == 0
        )
        v.segment_volume(lesion_network(Bright()), image, sparse, (0.3, 0.3, 0.3))


def test_swapped_image_and_brain_mask_are_one_sentence(head):
    image, brain = head[:2]
    for first, second in ((brain, image), (image, brain.float()), (image[0], brain)):
        with pytest.raises(ValueError, match="`image` must have shape"):
            v.segment_volume(lesion_network(Bright()), first, second, (2, 2, 2))
