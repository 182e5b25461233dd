"""What is counted of one case, and how the counts of cases are joined: examples counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scripts.evaluation.cases import (
    Evaluation,
    Sample,
    anomaly_thresholds,
    case_row,
    healthy_ssim,
    safe_file_name,
    warn_of_label,
)


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
    return Sample("one", image, brain_mask, label, pred_mask, image.square() * brain_mask, 0.9 * image, passes, 1.0)


def test_row_of_a_case_is_counted_by_hand(sample):
    row = case_row(sample, 6.0)
    assert row["lesion_pixels"] == 16 and row["brain_pixels"] == 2 * 144
    assert row["false_positive_fraction"] == pytest.approx(8 / (2 * 144 - 16))
    assert row["network_passes"] == 3.5  # slices without brain are not looked at


@pytest.mark.parametrize(("label", "told"), [(None, ""), ("brain", "100% of the brain, with 0%"), ("outside", "0% of")])
def test_label_that_is_none_of_lesions_is_told(sample, caplog, label, told):
    if label:
        sample.label = sample.brain_mask if label == "brain" else ~sample.brain_mask
    warn_of_label(sample)
    assert len(caplog.records) == bool(label) and told in caplog.text


def test_ssim_of_the_healthy_brain_knows_nothing_of_lesion_and_background(sample):
    before = healthy_ssim(sample, 6.0)
    sample.reconstruction[sample.label | ~sample.brain_mask] = 50.0
    assert healthy_ssim(sample, 6.0) == before and 0.5 < before["ssim_healthy_brain"] < 1


def test_what_is_marked_outside_the_brain_does_not_count(sample, tmp_path):
    def counted(pred_mask):
        evaluation = Evaluation(str(tmp_path), [1.0], ["flair"], {}, pictures=False)
        sample.pred_mask = pred_mask
        evaluation.add_case(sample)
        evaluation.add_healthy(sample)
        return evaluation.cases[0].mask_counts.tolist(), evaluation.healthy.mask_pixels

    assert counted(sample.pred_mask) == counted(sample.pred_mask | ~sample.brain_mask) == ([8, 16], 16)


@pytest.mark.parametrize("name", ["../up", "a b/c", "ümlaut", ".hidden", "a\nb", ""])
def test_odd_case_names_make_safe_file_names(name):
    safe = safe_file_name(name)
    assert set(safe) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert safe and not safe.startswith(".") and safe != safe_file_name(name + "!")


def test_the_calibrated_threshold_is_looked_at_exactly():
    thresholds = anomaly_thresholds([0.123456789, 0.4])
    assert np.float32(0.123456789) in thresholds and np.float32(0.4) in thresholds and (np.diff(thresholds) > 0).all()
