"""What is counted of one case, and how the counts of cases are joined: examples counted by hand."""

import math

import numpy as np
import pytest
import torch
from scripts.evaluation.baselines import AtlasBaseline, ZScoreBaseline, zscore
from scripts.evaluation.cases import Evaluation, Sample, case_row, healthy_ssim
from scripts.evaluation.metrics import average_precision, threshold_at_fraction
from scripts.evaluation.summaries import size_class_means, summarize_score
from scripts.method.scores import gaussian_smooth


@pytest.fixture
def sample():
    """Three slices (16, 16): the first with brain and lesion, the second with brain, the third with neither."""
    brain_mask = torch.zeros(3, 1, 16, 16, dtype=torch.bool)
    brain_mask[:2, :, 2:14, 2:14] = True
    label, pred_mask = torch.zeros_like(brain_mask), torch.zeros_like(brain_mask)
    label[0, 0, 4:8, 4:8] = True
    pred_mask[0, 0, 6:10, 4:8] = True
    image = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    passes = torch.tensor([5.0, 2.0, 0.0]).view(3, 1, 1, 1).expand(3, 1, 16, 16)
    return Sample("one", image, brain_mask, label, pred_mask, image.square() * brain_mask, 0.9 * image, passes)


def test_row_of_a_case_is_counted_by_hand(sample):
    row = case_row(sample, 6.0)
    assert row["lesion_pixels"] == 16 and row["brain_pixels"] == 2 * 144
    assert row["false_positive_fraction"] == pytest.approx(8 / (2 * 144 - 16))
    assert row["network_passes"] == 3.5  # slices without brain are not looked at


def test_ssim_of_the_healthy_brain_knows_nothing_of_lesion_and_background(sample):
    before = healthy_ssim(sample, 6.0)
    sample.reconstruction[sample.label | ~sample.brain_mask] = 50.0
    assert healthy_ssim(sample, 6.0) == before and 0.5 < before["ssim_healthy_brain"] < 1


def test_what_is_marked_outside_the_brain_does_not_count(sample, tmp_path):
    def counted(pred_mask):
        evaluation = Evaluation(str(tmp_path), 1.0, ["flair"], {}, pictures=False)
        sample.pred_mask = pred_mask
        evaluation.add_case(sample)
        evaluation.add_healthy(sample)
        return evaluation.cases[0].mask_counts.tolist(), evaluation.healthy.mask_pixels

    assert counted(sample.pred_mask) == counted(sample.pred_mask | ~sample.brain_mask) == ([8, 16], 16)


def test_size_classes_share_no_case():
    sizes = np.array([1, 199.9, 200, 799.9, 800, 5000])
    dice = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    means = size_class_means("dice", dice, sizes)
    assert means == pytest.approx({"dice_small": 0.1, "dice_medium": 0.5, "dice_large": 0.9})
    assert math.isnan(size_class_means("dice", dice[:2], sizes[:2])["dice_large"])


def test_average_precision_of_all_is_that_of_their_pixels_together():
    counts = np.array([[[4, 3, 1], [50, 10, 1]], [[9, 5, 0], [40, 8, 4]]])
    labeled, sizes, thresholds = np.array([4, 9]), np.array([300.0, 300.0]), np.array([0.0, 1.0, 2.0])
    summary = summarize_score(np.array([[3, 10], [5, 8]]), counts, labeled, sizes, thresholds)[1]
    expected = average_precision(np.array([13, 8, 1]), np.array([90, 18, 5]), 13)
    assert summary["average_precision"] == pytest.approx(expected)
    each = [average_precision(*case, size) for case, size in zip(counts, labeled, strict=True)]
    assert summary["average_precision_per_image"] == pytest.approx(np.mean(each))


@pytest.mark.parametrize(("fraction", "threshold"), [(0.2, 0.0), (0.1, 1.0), (0.09, 2.0), (0.05, 2.0), (0.0, 3.0)])
def test_threshold_of_a_fraction_is_the_lowest_that_marks_no_more(fraction, threshold):
    marked, thresholds = np.array([20, 10, 5, 0, 0]), np.arange(5.0)
    assert threshold_at_fraction(marked, 100, fraction, thresholds) == threshold


@pytest.mark.parametrize(("size", "sigma"), [((128, 128), 2.0), ((256, 200), 4.0), ((64, 64), 1.0)])
def test_smoothing_of_a_baseline_grows_with_the_grid(size, sigma):
    image = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0))
    brain_mask = torch.ones_like(image, dtype=torch.bool)
    expected = gaussian_smooth(zscore(image, brain_mask), brain_mask, sigma)
    torch.testing.assert_close(ZScoreBaseline(sigma=2.0)(image, brain_mask), expected)


def test_atlas_measures_deviations_from_the_mean_of_each_place():
    brain = torch.zeros(1, 24, 24)
    brain[:, 4:20, 4:20] = 1
    usual = torch.randn(1, 24, 24, generator=torch.Generator().manual_seed(0)) * 2
    atlas = AtlasBaseline([{"image": torch.cat([usual, brain])}] * 3, dict, sigma=0)
    image, brain_mask = usual[None], brain[None] > 0
    scores = zscore(image, brain_mask)
    variance = gaussian_smooth(scores.square(), torch.ones_like(brain_mask), 1.5)
    mean = gaussian_smooth(scores, torch.ones_like(brain_mask), 1.5)
    middle = (..., slice(10, 14), slice(10, 14))  # three slices count as one or more everywhere here
    expected = (scores - mean) / (variance - mean.square() + 0.05).sqrt()
    torch.testing.assert_close(atlas(image, brain_mask)[middle], expected[middle], rtol=1e-3, atol=1e-3)
    other = torch.where(brain_mask, image, torch.tensor(99.0))
    assert (atlas(other, brain_mask)[~brain_mask] == 0).all()
