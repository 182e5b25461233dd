"""Random numbers and smooth fields, against SciPy and NumPy."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from scripts.common.fields import blur, blur_inside, chance, coarse_field, log_uniform, smoothing_matrix, uniform


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_numbers_fill_their_range_evenly():
    numbers = uniform(-2, 6, (20_000,), generator())
    assert -2 <= numbers.min() and numbers.max() < 6
    assert torch.histc(numbers, 4, -2, 6) / 20_000 == pytest.approx(np.full(4, 0.25), abs=0.015)
    octaves = log_uniform(1, 8, (20_000,), generator()).log2()
    assert torch.histc(octaves, 3, 0, 3) / 20_000 == pytest.approx(np.full(3, 1 / 3), abs=0.015)
    assert float(chance(0.2, (20_000,), generator()).float().mean()) == pytest.approx(0.2, abs=0.015)


@pytest.mark.parametrize("shape", [(9, 14), (6, 9, 5)])
def test_blur_is_a_gaussian_away_from_the_border_and_keeps_a_constant_at_it(shape):
    sigmas = (0.7, 1.2, 0.5)[: len(shape)]
    image = np.zeros((1, *(length + 20 for length in shape)), np.float32)
    image[(0, *(slice(10, -10) for _ in shape))] = np.random.default_rng(0).normal(size=shape)
    expected = ndimage.gaussian_filter(image[0].astype(float), sigmas, truncate=6)
    np.testing.assert_allclose(blur(torch.from_numpy(image), sigmas)[0].numpy(), expected, atol=1e-5)
    torch.testing.assert_close(blur(torch.ones(1, *shape), sigmas), torch.ones(1, *shape))


def test_each_image_may_have_its_own_blur_and_none_leaves_it():
    image = torch.randn(2, 8, 9, generator=generator())
    found = blur(image, (torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0])))
    torch.testing.assert_close(found[0], image[0])
    torch.testing.assert_close(found[1:], blur(image[1:], (1.0, 2.0)))


def test_rows_of_the_matrix_sum_to_one():
    matrix = smoothing_matrix(11, torch.tensor([[0.0, 0.4], [2.0, 30.0]]))
    assert matrix.shape == (2, 2, 11, 11)
    torch.testing.assert_close(matrix.sum(dim=-1), torch.ones(2, 2, 11))
    torch.testing.assert_close(matrix[0, 0], torch.eye(11))


def test_blur_inside_does_not_mix_in_what_lies_outside():
    region = torch.zeros(1, 12, 12)
    region[:, 3:9, 3:9] = 1
    found = blur_inside(torch.where(region > 0, 2.0, 99.0), region, (1.0, 1.0), 1e-3)
    torch.testing.assert_close(found[region > 0], torch.full((36,), 2.0))


@pytest.mark.parametrize("size", [(32, 48), (24, 16, 12)])
def test_coarse_fields_are_smooth_and_come_from_their_generator_alone(size):
    field = coarse_field(40, size, 4, generator())
    assert field.shape == (40, *size) and torch.equal(field, coarse_field(40, size, 4, generator()))
    assert not torch.equal(field[0], field[1])
    assert float(field.mean()) == pytest.approx(0, abs=0.15) and 0.3 < float(field.std()) < 1
    assert float(field.diff(dim=1).std()) < 0.5 * float(field.std())
