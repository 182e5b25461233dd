"""Made lesions: what a healthy slice gets, so that a network learns to undo it and to say where it is."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..common.fields import blur, chance, coarse_field, log_uniform, normal, uniform

MOST_SPOTS = 10  # of one slice; more overlap or cost time
FEW_FRACTION = 0.55  # part of the slices with lesions that have 1 to 3 large ones; the others have many small ones
LARGE_RADIUS = (4.0, 42.0)  # pixels, of the largest of few: up to a glioma
SMALL_RADIUS = (1.5, 7.0)  # pixels, of the largest of many
LEAST_RADIUS = 0.8  # pixels, of the smallest of many: less is noise
FLATTEST = 0.45  # shortest beside longest axis
UNEVENNESS = 0.45  # of an outline, in radii
OUTLINE_KNOTS = ((3.0, 48), (9.0, 24), (math.inf, 10))  # up to a mean radius in pixels: knots of the outline's noise
SOFTNESS = (0.15, 1.8)  # pixels, width of the border
FARTHEST = 9.0  # radii: where a shape has ended for certain
SPARE_FLUID_FRACTION, FLUID_BELOW = 0.75, -1.3  # part of the slices whose lesions spare fluid; deviations of the brain
CONTRAST = (0.3, 5.5)  # deviations of the brain
CONTRAST_SPREAD = 0.25  # of the logarithm of the contrast, between the lesions of a slice
ADDED_FRACTION = 0.65  # part of the slices whose lesions are added to the tissue; in the others they replace it
LEAST_REPLACING = 1.5  # deviations: a lesion that replaces tissue is to stand out
CORE_FRACTION, CORE_RADIUS = 0.4, 6.0  # part of the slices with cores, in lesions above this radius in pixels
CORE_SIGNAL = (-4.0, 1.5)  # deviations of the brain: dark as fluid to bright
DARK_FRACTION = 0.25  # part of the slices with dark spots, which are no lesions
DARK_SPOTS, DARK_RADIUS, DARK_DEPTH = 3, (1.5, 16.0), (0.5, 4.0)  # at most, pixels, deviations of the brain


class Shapes(NamedTuple):
    """Spots of slices.

    Attributes:
        coverage: How much of each pixel they cover, in [0, 1], (N, H, W).
        nearest: Number of the nearest spot, (N, H, W), int64.
        depth: 0 in the middle of the nearest spot and 1 at its outline, (N, H, W).
        radius: Of the nearest spot in pixels, (N, H, W).
    """

    coverage: Tensor
    nearest: Tensor
    depth: Tensor
    radius: Tensor


def _nearest_spot(weight: Tensor, radius: Tensor, count: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Place ellipses; give the squared distance in radii from the nearest, (N, H, W), and its number."""
    number, height, width = weight.shape
    spots = radius.shape[1]
    center = torch.multinomial(weight.flatten(1) + 1e-9, spots, replacement=True, generator=generator)
    flat, angle = uniform(FLATTEST, 1, radius.shape, generator), uniform(0, math.pi, radius.shape, generator)
    rows = torch.arange(height, device=weight.device, dtype=torch.float32)[None, :, None]
    columns = torch.arange(width, device=weight.device, dtype=torch.float32)[None, None]
    least = torch.full(weight.shape, FARTHEST**2, device=weight.device)
    nearest = torch.zeros(weight.shape, dtype=torch.int8, device=weight.device)
    for k in range(int(count.max()) if number else 0):
        drawn = count > k
        row, column, size, ratio, turn = (
            values[drawn, k, None, None] for values in (center // width, center % width, radius, flat, angle)
        )
        down, right = rows - row, columns - column
        along = (down * turn.cos() + right * turn.sin()) / size
        across = (right * turn.cos() - down * turn.sin()) / (size * ratio)
        distance = along.square() + across.square()
        closer = distance < least[drawn]
        least[drawn] = torch.where(closer, distance, least[drawn])
        nearest[drawn] = torch.where(closer, nearest.new_tensor(k), nearest[drawn])
    return least, nearest.long()


def _outline_noise(radius: Tensor, size: torch.Size, generator: Generator) -> Tensor:
    """Noise (N, H, W) whose grain follows the mean radius of the spots, (N,)."""
    noise, low = torch.zeros(len(radius), *size, device=radius.device), 0.0
    for high, knots in OUTLINE_KNOTS:
        taken = ((radius >= low) & (radius < high)).nonzero()[:, 0]
        low = high
        if len(taken):
            fine = coarse_field(len(taken), size, min(64, 2 * knots), generator)
            noise[taken] = coarse_field(len(taken), size, knots, generator) + 0.5 * fine
    return noise


def draw_shapes(weight: Tensor, smallest: Tensor, largest: Tensor, count: Tensor, generator: Generator) -> Shapes:
    """Draw spots with uneven outlines and soft borders.

    Args:
        weight: How likely a spot has its middle at each pixel, (N, H, W), from 0.
        smallest: Smallest radius in pixels, (N,).
        largest: Largest radius in pixels, (N,).
        count: Spots of each slice, (N,), 0 for none.
        generator: Source of randomness.
    """
    number, size = len(weight), weight.shape[1:]
    most = max(1, int(count.max())) if number else 1
    place = torch.rand(number, most, generator=generator, device=weight.device)
    radii = smallest[:, None] * (largest / smallest)[:, None] ** place
    squared, nearest = _nearest_spot(weight, radii, count, generator)
    radius = radii.gather(1, nearest.flatten(1)).view(weight.shape)
    depth = squared.sqrt()
    noise = _outline_noise((smallest * largest).sqrt(), size, generator)
    depth = depth + uniform(0, UNEVENNESS, (number, 1, 1), generator) * noise * (depth < 4)
    border = torch.minimum(log_uniform(*SOFTNESS, (number, 1, 1), generator), 0.4 * radius)
    coverage = torch.sigmoid(1.5 * (1 - depth) * radius / border) * (count > 0)[:, None, None]
    return Shapes(coverage, nearest, depth, radius)


def _pooled(area: Tensor, pixels: int) -> Tensor:
    return F.avg_pool2d(area[:, None], pixels, ceil_mode=True, count_include_pad=False)[:, 0]


def _enlarged(area: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(area[:, None], size, mode="bilinear")[:, 0]


def lesion_places(image: Tensor, brain_mask: Tensor, generator: Generator) -> Tensor:
    """Draw where the lesions of each slice lie: anywhere, in tissue, at the ventricles, or near the surface.

    Args:
        image: Slices (N, H, W) in robust deviations of the brain.
        brain_mask: (N, H, W), bool.
        generator: Source of randomness.

    Returns:
        Weights (N, H, W) for `draw_shapes`.
    """
    size, brain = image.shape[1:], brain_mask.float()
    coarse = _pooled(brain, 4)
    deep = _enlarged(blur(coarse, (2.25, 2.25)), size) > 0.93
    fluid = ((image < -2) & deep).float()
    beside_fluid = _enlarged(blur(_pooled(fluid, 2), (1.1, 1.1)), size) > 0.04
    surface = _enlarged(blur(coarse, (1.0, 1.0)), size) < 0.85
    tissue = brain * (image > -1.2) * (image < 1.5)
    solid = brain * (image > -1.5)
    kind = torch.rand(len(image), 1, 1, generator=generator, device=image.device)
    weight = torch.where(kind < 0.35, tissue, brain)
    weight = torch.where((kind > 0.45) & (kind < 0.72), 30 * solid * beside_fluid + 0.15 * tissue, weight)
    return torch.where(kind > 0.88, 3 * solid * surface + 0.1 * brain, weight)


def lesion_sizes(number: int, lesion_fraction: float, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw how many lesions slices have, and smallest and largest radius in pixels: few large or many small ones.

    Args:
        number: Slices N.
        lesion_fraction: Part of the slices with lesions, in [0, 1].
        generator: Source of randomness.

    Returns:
        Smallest and largest radius, (N,), and the count, (N,), 0 for none.
    """
    device = generator.device
    few = chance(FEW_FRACTION, (number,), generator)
    large = log_uniform(*LARGE_RADIUS, (number,), generator)
    small = log_uniform(*SMALL_RADIUS, (number,), generator)
    smallest = (large * uniform(0.3, 0.9, (number,), generator)).clamp(min=1.2)
    smallest = torch.where(few, smallest, torch.full_like(smallest, LEAST_RADIUS))
    largest = torch.maximum(torch.where(few, large, small), 1.05 * smallest)
    one_to_three = torch.randint(1, 4, (number,), generator=generator, device=device)
    many = torch.randint(1, MOST_SPOTS + 1, (number,), generator=generator, device=device)
    count = torch.where(few, one_to_three, many) * chance(lesion_fraction, (number,), generator)
    return smallest, largest, count


def _signs(number: int, sign: str, generator: Generator) -> Tensor:
    """1 for bright lesions; as often -1 where both signs are asked for, (N, 1, 1)."""
    if sign == "bright":
        return torch.ones(number, 1, 1, device=generator.device)
    return 2.0 * chance(0.5, (number, 1, 1), generator) - 1


def fill_shapes(image: Tensor, shapes: Shapes, sign: Tensor, generator: Generator) -> Tensor:
    """Give spots their brightness: added to the tissue or in its place, textured, some with cores.

    Args:
        image: Slices (N, H, W) in robust deviations of the brain.
        shapes: The spots.
        sign: 1 for brighter, -1 for darker ones, (N, 1, 1).
        generator: Source of randomness.

    Returns:
        Slices with lesions.
    """
    number, size, one = len(image), image.shape[1:], (len(image), 1, 1)
    spots = int(shapes.nearest.max()) + 1 if number else 1
    contrast = log_uniform(*CONTRAST, (number, 1), generator)
    contrast = contrast * (CONTRAST_SPREAD * normal((number, spots), generator)).exp()
    level = contrast.gather(1, shapes.nearest.flatten(1)).view(image.shape)
    texture = 1 + uniform(0, 0.35, one, generator) * coarse_field(number, size, 12, generator)
    texture = texture + uniform(0, 0.25, one, generator) * coarse_field(number, size, 40, generator)
    grain = 0.3 * normal(image.shape, generator)
    added = image + sign * level * texture.clamp(min=0.3)
    level = level.clamp(min=LEAST_REPLACING) + uniform(-0.3, 0.8, one, generator)
    replaced = sign * level * texture.clamp(min=0.4) + grain
    adds = chance(ADDED_FRACTION, one, generator)
    result = image + shapes.coverage * (torch.where(adds, added, replaced) - image)
    cored = chance(CORE_FRACTION, one, generator) & (shapes.radius > CORE_RADIUS)
    border = uniform(0.3, 1.5, one, generator)
    core = torch.sigmoid((uniform(0.25, 0.75, one, generator) - shapes.depth) * shapes.radius / border)
    signal = sign * uniform(*CORE_SIGNAL, one, generator) + 0.5 * coarse_field(number, size, 20, generator)
    return result + core * cored * shapes.coverage * (signal - result)


def _dark_spots(brain_mask: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """What some slices lose in dark spots, in deviations, and how much of a pixel these cover, (N, H, W) both."""
    number, device = len(brain_mask), brain_mask.device
    count = torch.randint(1, DARK_SPOTS + 1, (number,), generator=generator, device=device)
    count = count * chance(DARK_FRACTION, (number,), generator)
    smallest = torch.full((number,), 1.2, device=device)
    largest = log_uniform(*DARK_RADIUS, (number,), generator)
    coverage = draw_shapes(brain_mask.float(), smallest, largest, count, generator).coverage * brain_mask
    return coverage * uniform(*DARK_DEPTH, (number, 1, 1), generator), coverage


def make_lesions(
    image: Tensor, brain_mask: Tensor, generator: Generator, lesion_fraction: float = 0.88, sign: str = "bright"
) -> tuple[Tensor, Tensor]:
    """Put lesions into healthy slices, and dark spots, which are none, into some.

    Args:
        image: Slices (N, M, H, W) in robust deviations of the brain from its median.
        brain_mask: (N, 1, H, W), bool.
        generator: Source of randomness, on the device of ``image``.
        lesion_fraction: Part of the slices with lesions, in [0, 1].
        sign: "bright", or "both" for lesions brighter or darker than the tissue.

    Returns:
        Slices with lesions, the same outside of them, and the lesions, (N, 1, H, W), bool.

    Raises:
        ValueError: When ``sign`` is neither, or ``lesion_fraction`` is no part.
    """
    if sign not in ("bright", "both"):
        raise ValueError(f"`sign` must be bright or both, got {sign!r}.")
    if not 0 <= lesion_fraction <= 1:
        raise ValueError(f"`lesion_fraction` must be in [0, 1], got {lesion_fraction}.")
    number, inside, first = len(image), brain_mask[:, 0], image[:, 0]
    weight = lesion_places(first, inside, generator)
    shapes = draw_shapes(weight, *lesion_sizes(number, lesion_fraction, generator), generator)
    spares = chance(SPARE_FLUID_FRACTION, (number, 1, 1), generator)
    solid = torch.sigmoid(3 * (blur(first, (0.6, 0.6)) - FLUID_BELOW))
    shapes = shapes._replace(coverage=torch.where(spares, shapes.coverage * solid, shapes.coverage) * inside)
    filled = [fill_shapes(channel, shapes, _signs(number, sign, generator), generator) for channel in image.unbind(1)]
    label = (shapes.coverage > 0.5) & inside
    if sign == "bright":
        loss, coverage = _dark_spots(inside, generator)
        filled = [channel - loss for channel in filled]
        label = label & (coverage < 0.4)
    return torch.stack(filled, dim=1), label[:, None]
