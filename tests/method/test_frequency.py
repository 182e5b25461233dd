import numpy as np
import pytest
import torch
from scripts.method.frequency import HighFrequencyd, high_frequency


@pytest.fixture
def image():
    return torch.randn(2, 3, 36, 41, generator=torch.Generator().manual_seed(0))


def test_radius_zero_is_the_identity(image):
    torch.testing.assert_close(high_frequency(image, 0), image, rtol=0, atol=1e-5)


def test_commutes_with_circular_shifts(image):
    shifted = high_frequency(image.roll((5, -7), (-2, -1)), 6)
    torch.testing.assert_close(shifted, high_frequency(image, 6).roll((5, -7), (-2, -1)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("radius", [5, 7.5])  # bins at just 5 (3 and 4 away) stay; none is at 7.5
def test_equals_an_independent_formula(image, radius):
    for found, slice_ in zip(high_frequency(image, radius).flatten(0, 1), image.flatten(0, 1), strict=True):
        spectrum = np.fft.fftshift(np.fft.fft2(slice_.numpy()))
        for row, column in np.ndindex(spectrum.shape):
            if np.hypot(row - 36 // 2, column - 41 // 2) < radius:
                spectrum[row, column] /= abs(spectrum[row, column])
        np.testing.assert_allclose(found, np.fft.ifft2(np.fft.ifftshift(spectrum)).real, atol=1e-4)


def test_slices_and_modalities_do_not_mix(image):
    alone = torch.cat([high_frequency(image[:, channel : channel + 1], 9) for channel in range(3)], dim=1)
    torch.testing.assert_close(high_frequency(image, 9), alone, rtol=0, atol=1e-6)


def test_dictionary_transform_keeps_the_image(image):
    found = HighFrequencyd("image", "high", 5)({"image": image[0]})
    torch.testing.assert_close(found["high"], high_frequency(image[:1], 5)[0])
    assert torch.equal(found["image"], image[0])


@pytest.mark.parametrize(
    ("shape", "radius", "message"),
    [((4, 3, 8), 2, r"must have shape \(N, M, H, W\), got \[4, 3, 8\]"), ((1, 1, 8, 8), -1, "at least 0")],
)
def test_refuses_what_it_cannot_take(shape, radius, message):
    with pytest.raises(ValueError, match=message):
        high_frequency(torch.zeros(shape), radius)
