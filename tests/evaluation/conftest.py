"""Makes samples for tests of the evaluation."""

import pytest
import torch
from scripts.evaluation.samples import Sample


@pytest.fixture
def make_sample():
    """Makes a case of slices (D, M, H, W) whose prediction is empty, unless other fields are given."""

    def make(image, brain_mask, **fields):
        nothing = torch.zeros_like(brain_mask)
        defaults = {"name": "one", "label": nothing, "pred_mask": nothing, "anomaly_map": image[:, :1] * brain_mask}
        defaults |= {"reconstruction": image, "iterations": torch.ones(len(image)), "threshold": 1.0}
        return Sample(image=image, brain_mask=brain_mask, **{**defaults, "grid": tuple(image.shape[-2:]), **fields})

    return make
