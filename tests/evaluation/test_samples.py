"""What is counted of one case without any threshold: examples counted by hand."""

import pytest
import torch
from scripts.evaluation.samples import Sample, as_slices, case_row, healthy_ssim, warn_of_label


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


def test_slices_of_a_volume_and_of_a_slice_come_first():
    volume = torch.arange(24.0).view(1, 2, 3, 4)
    assert torch.equal(as_slices(volume)[2], volume[..., 2]) and as_slices(volume).shape == (4, 1, 2, 3)
    assert torch.equal(as_slices(volume[..., 2])[0], volume[..., 2])


def test_chosen_slices_alone_are_left(sample):
    chosen = sample.select(torch.tensor([False, True, False]))
    assert chosen.image.shape == (1, 1, 16, 16) and torch.equal(chosen.brain_mask[0], sample.brain_mask[1])
    assert chosen.name == "one" and len(sample.image) == 3
