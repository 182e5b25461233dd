from functools import partial

import pytest
import torch
from monai.networks.nets import BasicUNet
from scripts.method.itermask import IterMask, hide, iteration_noise
from torch import nn


class Perfect(nn.Module):
    """Returns the image it was given at first, whatever is hidden now."""

    def __init__(self, image):
        super().__init__()
        self.image = image

    def forward(self, corrupted):
        return self.image


def refined(model, image, brain_mask, **options):
    with torch.no_grad():
        return model.refine(image, brain_mask, **options)


def test_perfect_reconstruction_leaves_nothing_hidden(model, image, brain_mask):
    model.masked = Perfect(image[:1])
    mask, anomaly_map, *_ = refined(model, image[:1], brain_mask[:1])
    assert not mask.any() and not anomaly_map.any()


def test_masks_shrink_inside_the_brain(model, image, brain_mask):
    masks = [refined(model, image, brain_mask, max_iterations=number)[0] for number in range(1, 6)]
    assert masks[0].any()
    for larger, smaller in zip([brain_mask, *masks], masks, strict=False):
        assert not (smaller & ~larger).any()


def test_first_mask_hides_the_asked_fraction_of_the_brain(model, image, brain_mask):
    model.threshold.fill_(0)
    model.initial_fraction = 0.25
    mask = refined(model, image, brain_mask, max_iterations=1)[0]
    fraction = mask[:3].flatten(1).sum(1) / brain_mask[:3].flatten(1).sum(1)
    torch.testing.assert_close(fraction, torch.full((3,), 0.25), rtol=0, atol=0.02)


def test_result_of_a_slice_does_not_depend_on_its_neighbors(model, image, brain_mask):
    together = refined(model, image, brain_mask)
    for index in range(4):
        alone = refined(model, image[index : index + 1], brain_mask[index : index + 1])
        for whole, part in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[index], part[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batch_size_does_not_matter(model, image, brain_mask, batch_size):
    whole = refined(model, image, brain_mask)
    parts = refined(model, image, brain_mask, batch_size=batch_size)
    assert torch.equal(whole[0], parts[0]) and torch.equal(whole[3], parts[3])


def test_every_iteration_is_counted(model, image, brain_mask):
    seen = {"first_iteration": 0, "masked": 0}
    for name in seen:

        def count(module, inputs, output, name=name):
            seen[name] += len(output)

        getattr(model, name).register_forward_hook(count)
    iterations = refined(model, image, brain_mask)[3]
    assert int(iterations.sum()) == sum(seen.values())
    assert seen["first_iteration"] == 3  # the slice without brain is not looked at
    assert int(iterations[3]) == 0


def test_same_input_gives_the_same_mask_and_leaves_the_global_random_state_alone(model, image, brain_mask):
    before = torch.get_rng_state()
    first, second = refined(model, image, brain_mask), refined(model, image, brain_mask)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(before, torch.get_rng_state())


def test_seed_changes_what_fills_the_hidden_pixels(model, image, brain_mask):
    assert not torch.equal(refined(model, image, brain_mask, seed=0)[2], refined(model, image, brain_mask, seed=9)[2])
    assert not torch.equal(iteration_noise(image, 0), iteration_noise(image, 1))


def test_higher_threshold_scale_marks_less(model, image, brain_mask):
    sizes = [int(refined(model, image, brain_mask, threshold_scale=s, max_iterations=1)[0].sum()) for s in (0.1, 1, 10)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_missing_threshold_is_an_error(model, image, brain_mask):
    model.threshold.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="The model lacks a threshold"):
        refined(model, image, brain_mask)


def test_initial_fraction_as_percentage_is_an_error(small_network):
    with pytest.raises(ValueError, match="did you pass a percentage"):
        IterMask(small_network, initial_fraction=60)


def test_forward_gives_the_refined_mask(model, image, brain_mask):
    with torch.no_grad():
        found = model(torch.cat([image, brain_mask.float()], dim=1))
    assert torch.equal(found, refined(model, image, brain_mask)[0].float())


def test_hiding_leaves_the_rest_bit_identical(image, brain_mask):
    mask = brain_mask & (image > 0)
    hidden = hide(image, mask, torch.full((1, 1, 32, 48), 9.0))
    assert torch.equal(hidden[~mask], image[~mask]) and (hidden[mask] == 9).all()


def test_several_modalities_share_one_mask(small_network, image, brain_mask):
    model = IterMask(small_network, modalities=("flair", "t1"), threshold=0.5).eval()
    two = torch.cat([image, image * 0.5], dim=1)
    mask, anomaly_map, reconstruction, _ = refined(model, two, brain_mask)
    assert mask.shape == anomaly_map.shape == (4, 1, 32, 48) and reconstruction.shape == (4, 2, 32, 48)


def test_takes_a_monai_network(image, brain_mask):
    model = IterMask(partial(BasicUNet, spatial_dims=2, features=(4, 4, 8, 8, 8, 4)), threshold=0.5).eval()
    assert refined(model, image, brain_mask)[0].shape == image.shape
