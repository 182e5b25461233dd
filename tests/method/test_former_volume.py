"""Lesions in whole volumes, with networks whose answer is known."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import ndimage
from scripts.method import former_volume as v
from scripts.method.threshold_rule import LOWEST
from torch import nn


class Bright(nn.Module):
    """Sees a lesion where a slice is brighter than 4 deviations of the brain, and takes what it sees as healthy."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, inputs):
        image = inputs[:, :-1]
        self.seen.append(inputs)
        logit = 4 * (image.amax(dim=1, keepdim=True) * v.UNIT - 4)
        return torch.cat([image, torch.zeros_like(image), logit], dim=1)


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
    found = v.segment_volume(Bright(), image, brain, (2, 2, 2))
    assert dice(found.mask, lesion) > 0.9 and found.mask.dtype == torch.bool
    assert not found.probability[~brain].any() and found.probability[lesion].mean() > 0.9
    assert torch.equal(found.reconstruction[~brain], image[~brain])
    assert float((found.reconstruction - image)[brain].abs().mean()) < 1  # smoothed by the way there and back


def test_scale_of_intensities_and_background_change_nothing(head):
    image, brain, _ = head
    expected = v.segment_volume(Bright(), image, brain, (2, 2, 2)).mask
    other = v.segment_volume(Bright(), torch.where(brain, 3 * image - 50, -7.0), brain, (2, 2, 2)).mask
    assert dice(other, expected) > 0.999
    padding = (3, 0, 5, 1, 0, 2)
    padded = [nn.functional.pad(volume, padding) for volume in (image, brain)]
    padded = v.segment_volume(Bright(), *padded, (2, 2, 2)).mask
    assert torch.equal(padded[:, : image.shape[1], 5:-1, 3:], expected)


def test_modalities_are_standardized_one_by_one(head):
    image, brain, lesion = head
    both = torch.cat([image, 1000 - 5 * image]) * brain
    network = Bright()
    found = v.segment_volume(network, both, brain, (2, 2, 2))
    assert dice(found.mask, lesion) > 0.9 and found.reconstruction.shape == both.shape
    inside = network.seen[0][:, 0] != v.BACKGROUND
    assert abs(float(network.seen[0][:, 0][inside].median())) < 0.2 > abs(float(network.seen[0][:, 1][inside].median()))


def test_network_sees_slices_of_three_planes_with_the_brain_inside(head):
    image, brain, _ = head
    network = Bright()
    v.segment_volume(network, image, brain, (2, 2, 2), batch_size=16)
    assert all(len(seen) <= 16 and not {*seen.shape[2:]} - {16, 32, 48, 64, 80} for seen in network.seen)
    slices = sum(len(seen) for seen in network.seen)
    assert slices == pytest.approx(5 * 80 / v.PIXEL_SIZE, abs=10)  # two planes are seen mirrored too
    hidden = torch.cat([seen[:, 1].flatten() for seen in network.seen])
    shown = torch.cat([seen[:, 0].flatten() for seen in network.seen])
    assert torch.equal(hidden > 0, shown != v.BACKGROUND)  # all of the brain is hidden, and nothing else


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
    both, one = (v.take_off_mirrored(values, brain)[4, 10, 10] for values in (score, single))
    assert one == 5 and 5 - v.MIRROR_WEIGHT * 5 <= both < 4.9


def test_threshold_scale_is_a_factor_on_the_odds(head):
    image, brain, _ = head
    masks = [v.segment_volume(Bright(), image, brain, (2, 2, 2), threshold_scale=scale) for scale in (0.2, 1, 5)]
    sizes = [int(found.mask.sum()) for found in masks]
    assert sizes[0] > sizes[1] > sizes[2] > 0
    assert v.lowest_probability(1) == pytest.approx(1 / (1 + math.exp(0.5)))
    for scale, found in zip((0.2, 1, 5), masks, strict=True):
        assert float(found.probability[found.mask].min()) >= v.lowest_probability(scale) - 1e-3


def test_slab_is_no_whole_brain():
    brain = torch.zeros(100, 100, 100, dtype=torch.bool)
    brain[10:90, 10:90, 40:60] = True
    assert not v.is_whole(brain, (1, 1, 1)) and v.is_whole(brain, (1, 1, 4))
    assert not v.is_whole(torch.zeros_like(brain), (1, 1, 1))


@pytest.mark.parametrize(("certain", "shift"), [(0.0, 0.0), (0.001, 0.0), (0.002, math.log(2)), (0.5, 2.0)])
def test_logits_rise_with_what_is_certain(certain, shift):
    logit = torch.full((10_000,), -3.0)
    logit[: int(certain * 10_000)] = 1.0
    assert v.prior_shift(logit) == pytest.approx(shift, abs=1e-5)
    assert v.prior_shift(logit - 1) == 0


class OneSided(Bright):
    """Sees more on one side of what it is shown."""

    def forward(self, inputs):
        output = super().forward(inputs)
        output[:, -1:] += torch.linspace(-3, 3, inputs.shape[2]).view(1, 1, -1, 1)
        return output


def test_mirrored_head_gives_the_mirrored_mask(head):
    image, brain, _ = head
    mask = v.segment_volume(OneSided(), image, brain, (2, 2, 2)).mask
    mirrored = v.segment_volume(OneSided(), image.flip(1), brain.flip(1), (2, 2, 2)).mask.flip(1)
    assert mask.any() and dice(mask, mirrored) > 0.97


def test_mask_that_is_no_brain_is_told(head):
    image, brain, _ = head
    half = torch.where(torch.arange(48)[None, :, None, None] > 22, image, 0.0)
    with pytest.raises(ValueError, match="one intensity in half of its brain"):
        v.segment_volume(Bright(), half, torch.ones_like(brain), (2, 2, 2))
    with pytest.raises(ValueError, match="brain that vanishes on voxels of 1.25 mm"):
        sparse = brain & (
            torch.stack(torch.meshgrid(*map(torch.arange, brain.shape[1:]), indexing="ij")).sum(0) % 4 == 0
        )
        v.segment_volume(Bright(), image, sparse, (0.3, 0.3, 0.3))


class Graded(nn.Module):
    """Sees lesions by degrees of brightness, and takes what it sees as healthy."""

    def forward(self, inputs):
        image = inputs[:, :-1]
        return torch.cat([image, torch.zeros_like(image), image * v.UNIT - 5], dim=1)


@pytest.fixture
def faint(head):
    """The head with another lesion of 16 mm, 4.7 brighter, which alone is never certain."""
    image, brain, lesion = head
    other = ball(brain.shape[1:], (16, 24, 20), 4)[None]
    return image + 4.7 * other, brain, lesion | other, other


@pytest.mark.parametrize("scale", [0.2, 1, 5])
def test_slope_rule_moves_the_threshold_that_it_found_to_where_maps_are_cut(faint, scale):
    image, brain, *_ = faint
    at = {}
    for rule in ("prior", "slope"):
        at[rule] = v.segment_volume(Graded(), image, brain, (2, 2, 2), scale, threshold_rule=rule)
        marked = at[rule].probability[at[rule].mask]
        assert len(marked) and float(marked.min()) >= v.lowest_probability(scale) - 1e-3
    inner = ball(brain.shape[1:], (24, 26, 22), 17)[None]
    logits = {rule: torch.logit(found.probability[inner].double()) for rule, found in at.items()}
    moved = (logits["slope"] - logits["prior"])[logits["prior"] > -4]
    assert float(moved.max() - moved.min()) < 0.01  # one number for a subject, and the same at every scale
    assert float(moved.mean()) == pytest.approx((v.LOW - LOWEST) - v.LARGEST_SHIFT, abs=0.01)  # both go all the way


def test_slope_rule_is_monotone_in_the_threshold_scale(faint):
    image, brain, *_ = faint
    masks = [
        v.segment_volume(Graded(), image, brain, (2, 2, 2), scale, threshold_rule="slope").mask for scale in (0.2, 1, 5)
    ]
    assert all((larger | smaller).equal(larger) for larger, smaller in pairwise(masks)) and masks[2].any()


def test_slope_rule_marks_nothing_in_a_brain_without_lesion(head):
    image, brain, lesion = head
    healthy = torch.where(lesion, image - 8, image)
    assert not v.segment_volume(Graded(), healthy, brain, (2, 2, 2), threshold_rule="slope").mask.any()
