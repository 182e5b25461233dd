"""Properties of made lesions."""

import numpy as np
import pytest
from scipy import ndimage
from scripts.data.made_lesions import PLACES, add_lesions


def healthy(seed=0):
    """A small brain: white matter in cortex, ventricles, a brain stem and a cerebellum below."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((40, 36, 44), dtype=np.int16)
    labels[2:38, 2:34, 12:42], labels[5:35, 5:31, 15:39] = 3, 2
    labels[16:24, 12:24, 24:32] = 4
    labels[18:22, 10:20, 2:12], labels[10:30, 20:34, 2:12] = 16, 8
    means = np.array([0, 0, 1, 1.2, 0.2] + [1.1] * 12)
    image = means[labels] + 0.05 * rng.standard_normal(labels.shape)
    return np.where(labels > 0, image, 0).astype(np.float32), labels > 0, labels


@pytest.mark.parametrize("place", PLACES)
def test_lesions_are_bright_lie_in_tissue_and_change_nothing_else(place):
    image, brain_mask, labels = healthy()
    made = add_lesions(image, brain_mask, labels, np.random.default_rng(1), 1.0, 2, 3.0, (place,))
    assert made.label.any() and not made.label[~brain_mask].any()
    far = ~ndimage.binary_dilation(made.label, iterations=8)
    np.testing.assert_array_equal(made.image[far], image[far])
    white = made.label & (labels == 2)
    assert not white.any() or made.image[white].mean() > image[white].mean() + 0.1


def test_the_same_generator_makes_the_same_lesions_and_the_global_state_is_untouched():
    image, brain_mask, labels = healthy()
    state = np.random.get_state()[1].copy()
    first, second, third = (
        add_lesions(image, brain_mask, labels, np.random.default_rng(seed), 1.0, 3) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.image, second.image)
    assert (first.label != third.label).any()
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_contrast_is_in_deviations_of_white_matter():
    image, brain_mask, labels = healthy()
    weak, strong = (
        add_lesions(image, brain_mask, labels, np.random.default_rng(1), 2.0, 1, contrast) for contrast in (1, 3)
    )
    inside = ndimage.binary_erosion(weak.label, iterations=3)
    white = np.median(image[labels == 2])
    difference = (strong.image - weak.image)[inside].mean()
    np.testing.assert_allclose(difference, 2 * 0.08 * white, rtol=0.15)  # of noise 0.05: real scans have 0.08


@pytest.mark.parametrize("volume", [0.05, 1.0, 8.0])
def test_lesions_have_the_wanted_volume(volume):
    everywhere = np.ones((60, 60, 60), bool)
    labels = np.where(everywhere, 2, 0)
    image = 1 + 0.05 * np.random.default_rng(0).standard_normal(labels.shape).astype(np.float32)
    found = [
        add_lesions(image, everywhere, labels, np.random.default_rng(seed), volume).label.sum() for seed in range(9)
    ]
    assert max(found) == pytest.approx(1000 * volume, rel=0.1, abs=15)  # others are cut off at the rim


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"volume_ml": 5000}, "cubic millimeters"),
        ({"number": 0}, "`number` of lesions"),
        ({"place": ("liver",)}, "`place` must be one of"),
        ({"labels": np.zeros((40, 36, 44))}, "White matter has 0 voxels"),
    ],
)
def test_errors_say_what_to_do(changes, words):
    image, brain_mask, labels = healthy()
    arguments = {"image": image, "brain_mask": brain_mask, "rng": np.random.default_rng(0), "labels": labels}
    with pytest.raises(ValueError, match=words):
        add_lesions(**(arguments | changes))
