"""How the counts of cases are joined, and where they are written."""

import numpy as np
import pytest
import torch
from scripts.evaluation.cases import Evaluation, anomaly_thresholds, safe_file_name
from scripts.evaluation.samples import Sample


def test_what_is_marked_outside_the_brain_does_not_count(tmp_path):
    image = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    brain_mask, label, pred_mask = (torch.zeros_like(image, dtype=torch.bool) for _ in range(3))
    brain_mask[..., 2:14, 2:14] = True
    label[0, 0, 4:8, 4:8] = True
    pred_mask[0, 0, 6:10, 4:8] = True

    def counted(marked):
        evaluation = Evaluation(str(tmp_path), [1.0], ["flair"], {}, pictures=False)
        sample = Sample("one", image, brain_mask, label, marked, image, image, torch.ones_like(image), 1.0)
        evaluation.add_case(sample)
        evaluation.add_healthy(sample)
        return evaluation.cases[0].mask_counts.tolist(), evaluation.healthy.mask_pixels

    assert counted(pred_mask) == counted(pred_mask | ~brain_mask) == ([8, 16], 16)


@pytest.mark.parametrize("name", ["../up", "a b/c", "ümlaut", ".hidden", "a\nb", ""])
def test_odd_case_names_make_safe_file_names(name):
    safe = safe_file_name(name)
    assert set(safe) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert safe and not safe.startswith(".") and safe != safe_file_name(name + "!")


def test_the_calibrated_threshold_is_looked_at_exactly():
    thresholds = anomaly_thresholds([0.123456789, 0.4])
    assert np.float32(0.123456789) in thresholds and np.float32(0.4) in thresholds and (np.diff(thresholds) > 0).all()
