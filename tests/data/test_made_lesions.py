"""Properties of made lesions."""

import numpy as np
import pytest
from scripts.data.made_lesions import PLACES, add_lesions, blob, inflated, places, white_matter_scale


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
    made = add_lesions(image, brain_mask, np.random.default_rng(1), 1.0, 2, 3.0, place, labels)
    assert made.label.any() and not made.label[~brain_mask].any()
    np.testing.assert_array_equal(made.image[made.weight == 0], image[made.weight == 0])
    white = made.label & (labels == 2)
    assert not white.any() or made.image[white].mean() > image[white].mean() + 0.1


def test_the_same_generator_makes_the_same_lesions_and_the_global_state_is_untouched():
    image, brain_mask, labels = healthy()
    state = np.random.get_state()[1].copy()
    first, second, third = (
        add_lesions(image, brain_mask, np.random.default_rng(seed), 1.0, 3, labels=labels) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.image, second.image)
    assert (first.label != third.label).any()
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_contrast_is_in_deviations_of_white_matter():
    image, brain_mask, labels = healthy()
    weak, strong = (
        add_lesions(image, brain_mask, np.random.default_rng(1), 2.0, 1, c, labels=labels, texture=0) for c in (1, 3)
    )
    inside = weak.weight > 0.95
    _, deviation = white_matter_scale(image, brain_mask, labels)
    np.testing.assert_allclose((strong.image - weak.image)[inside].mean(), 2 * deviation, rtol=0.05)


@pytest.mark.parametrize("volume", [0.05, 1.0, 8.0])
def test_shapes_have_the_wanted_volume(volume):
    drawn = np.zeros((30, 41), dtype=bool)
    drawn[3:20, 5:11], drawn[14:20, 5:30] = True, True
    for depth in (blob(np.random.default_rng(0), volume), inflated(np.random.default_rng(0), drawn, volume)):
        assert (depth > 0).sum() == pytest.approx(1000 * volume, rel=0.03, abs=3)


def test_a_cavity_is_dark_and_belongs_to_the_lesion():
    image, brain_mask, labels = healthy()
    made = add_lesions(image, brain_mask, np.random.default_rng(3), 8.0, 1, 2.0, labels=labels, fluid_fraction=0.4)
    assert (made.image[made.label] < 0.7).mean() > 0.1


def test_without_a_label_map_the_image_tells_the_places():
    image, brain_mask, _ = healthy()
    made = add_lesions(image, brain_mask, np.random.default_rng(1), 1.0, 1, 3.0)
    assert made.label.any() and places(brain_mask, "cortical", image=image).any()


def test_cortex_of_an_image_without_labels_lies_less_than_a_centimeter_deep():
    brain_mask = np.zeros((44, 44, 44), bool)
    brain_mask[2:42, 2:42, 2:42] = True
    found = places(brain_mask, "cortical", image=brain_mask.astype(np.float32))
    assert found[:, 22, 22].nonzero()[0].tolist() == [*range(4, 11), *range(33, 40)]


def test_a_slice_gets_a_flat_lesion():
    image, brain_mask, labels = (volume[..., 20:21] for volume in healthy())
    made = add_lesions(image, brain_mask, np.random.default_rng(1), 0.5, 1, labels=labels)
    assert made.image.shape == image.shape and made.label.any()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"volume_ml": 5000}, "cubic millimeters"),
        ({"number": 0}, "`number` of lesions"),
        ({"rim_mm": -1}, "`rim_mm` must be 0 or more"),
        ({"fluid_fraction": 20}, "percentage"),
        ({"place": "liver"}, "`place` must be one of"),
        ({"place": "brain_stem", "labels": None}, "needs a label map"),
        ({"brain_mask": np.ones((2, 2, 2), bool)}, "one shape"),
    ],
)
def test_errors_say_what_to_do(changes, words):
    image, brain_mask, labels = healthy()
    arguments = {"image": image, "brain_mask": brain_mask, "rng": np.random.default_rng(0), "labels": labels}
    with pytest.raises(ValueError, match=words):
        add_lesions(**(arguments | changes))


def test_an_empty_drawn_lesion_is_refused():
    with pytest.raises(ValueError, match="has no pixel"):
        inflated(np.random.default_rng(0), np.zeros((5, 5), bool), 1.0)
