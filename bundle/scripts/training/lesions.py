"""Made lesions: what a healthy slice gets, so that a network learns to undo it and to say where it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..common.fields import blur, chance, coarse_field, log_uniform, normal, uniform

FLATTEST = 0.45  # shortest beside longest axis
UNEVENNESS = 0.45  # of an outline, in radii
OUTLINE_KNOTS = ((3.0, 48), (9.0, 24), (math.inf, 10))  # up to a mean radius in pixels: knots of the outline's noise
WIDEST_BORDER = 0.8  # of a spot, in radii
WINDOW = 5.0  # radii around a spot that are looked at
FARTHEST = 9.0  # radii: where a shape has ended for certain


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


def _nearest_spot(weight: Tensor, radius: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Place ellipsoids, cut somewhere by the slice; give the squared distance in radii from the nearest's middle.

    Spots are looked at in a window, for which the slices get a margin.

    Returns:
        The distance (N, H, W), and the number of the nearest, int64.
    """
    number, height, width = weight.shape
    center = torch.multinomial(weight.flatten(1) + 1e-9, radius.shape[1], replacement=True, generator=generator)
    flat, angle = uniform(FLATTEST, 1, radius.shape, generator), uniform(0, math.pi, radius.shape, generator)
    above = uniform(-1, 1, radius.shape, generator).square()
    farthest = max(height, width)
    padded = (number, (height + 2 * farthest) * (width + 2 * farthest))
    least = torch.full(padded, FARTHEST**2, device=weight.device)
    nearest = torch.zeros(padded, dtype=torch.int64, device=weight.device)
    for k in range(radius.shape[1]):
        drawn = (radius[:, k] > 0).nonzero()[:, 0]
        if len(drawn) == 0:
            continue
        reach = min(farthest, math.ceil(WINDOW * float(radius[drawn, k].max())))
        offset = torch.arange(-reach, reach + 1, device=weight.device)
        size, ratio, turn, height_above = (values[drawn, k, None, None] for values in (radius, flat, angle, above))
        along = (offset[:, None] * turn.cos() + offset * turn.sin()) / size
        across = (offset * turn.cos() - offset[:, None] * turn.sin()) / (size * ratio)
        distance = (along.square() + across.square() + height_above).flatten(1)
        row, column = center[drawn, k] // width + farthest, center[drawn, k] % width + farthest
        place = (row[:, None, None] + offset[:, None]) * (width + 2 * farthest) + column[:, None, None] + offset
        place = place.flatten(1) + drawn[:, None] * padded[1]
        before = least.view(-1)[place]
        closer = distance < before
        least.view(-1)[place] = torch.where(closer, distance, before)
        nearest.view(-1)[place[closer]] = k
    inner = slice(farthest, farthest + height), slice(farthest, farthest + width)
    least, nearest = (each.view(number, height + 2 * farthest, -1)[(slice(None), *inner)] for each in (least, nearest))
    return least, nearest


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


def draw_shapes(weight: Tensor, radius: Tensor, border: Tensor, generator: Generator) -> Shapes:
    """Draw spots with uneven outlines and soft borders: ellipsoids that the slice cuts anywhere.

    Args:
        weight: How likely a spot has its middle at each pixel, (N, H, W), from 0.
        radius: Of the spots of each slice in pixels, (N, S), 0 for none.
        border: Width of the border in pixels, (N, 1, 1), at most `WIDEST_BORDER` radii.
        generator: Source of randomness.
    """
    number, size = len(weight), weight.shape[1:]
    squared, nearest = _nearest_spot(weight, radius, generator)
    depth = squared.sqrt()
    noise = _outline_noise(radius.amax(dim=1), size, generator)
    depth = depth + uniform(0, UNEVENNESS, (number, 1, 1), generator) * noise * (depth < 4)
    radius = radius.gather(1, nearest.flatten(1)).view(weight.shape)
    border = torch.minimum(border, WIDEST_BORDER * radius).clamp(min=0.1)
    coverage = torch.sigmoid(1.5 * (1 - depth) * radius / border) * (radius > 0)
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


def lesion_radii(
    number: int,
    generator: Generator,
    large_fraction: float = 0.45,
    large_radius: tuple[float, float] = (4.0, 42.0),
    most_large: int = 3,
    small_radius: tuple[float, float] = (1.9, 0.65),
    most_small: int = 30,
) -> tuple[Tensor, Tensor]:
    """Draw the sizes of the lesions of slices: many small ones, or few large ones, among which there may be small ones.

    Args:
        number: Slices N.
        generator: Source of randomness.
        large_fraction: Part of the slices with large lesions, in [0, 1].
        large_radius: Lowest and highest radius of the largest in pixels, as many between 5 and 10 as between 10 and 20.
        most_large: Large ones of a slice, S.
        small_radius: Median of the small ones' radius in pixels, and deviation of its logarithm.
        most_small: Small ones of a slice, T.

    Returns:
        Radii in pixels (N, S + T), 0 for none, and whether the slice has large lesions, (N,), bool.
    """
    device = generator.device
    has_large = chance(large_fraction, (number, 1), generator)
    large = log_uniform(*large_radius, (number, 1), generator) * uniform(0.3, 1, (number, most_large), generator)
    count = torch.randint(1, most_large + 1, (number, 1), generator=generator, device=device)
    large = large * has_large * (torch.arange(most_large, device=device) < count)
    small = small_radius[0] * (small_radius[1] * normal((number, most_small), generator)).exp()
    count = log_uniform(1, most_small + 1, (number, 1), generator).floor()
    count = count * (~has_large | chance(0.5, (number, 1), generator))
    small = small.clamp(0.7, 8) * (torch.arange(most_small, device=device) < count)
    return torch.cat([large, small], dim=1), has_large[:, 0]


def fill_shapes(image: Tensor, shapes: Shapes, level: Tensor, sign: float | Tensor, generator: Generator) -> Tensor:
    """Give spots their brightness: added to the tissue or in its place, textured, some large ones with cores.

    Args:
        image: Slices (N, H, W) in robust deviations of the brain.
        shapes: The spots.
        level: Brightness of each pixel's nearest spot above its surroundings, (N, H, W), above 0.
        sign: 1 for brighter, -1 for darker ones, (N, 1, 1), or one number for all.
        generator: Source of randomness.

    Returns:
        Slices with lesions.
    """
    number, size, one = len(image), image.shape[1:], (len(image), 1, 1)
    texture = 1 + uniform(0, 0.35, one, generator) * coarse_field(number, size, 12, generator)
    texture = texture + uniform(0, 0.25, one, generator) * coarse_field(number, size, 40, generator)
    grain = 0.3 * normal(image.shape, generator)
    added = image + sign * level * texture.clamp(min=0.3)
    replaced = level.clamp(min=1.5) + uniform(-0.3, 0.8, one, generator)  # in place of tissue it is to stand out
    replaced = sign * replaced * texture.clamp(min=0.4) + grain
    result = image + shapes.coverage * (torch.where(chance(0.65, one, generator), added, replaced) - image)
    cored = chance(0.4, one, generator) & (shapes.radius > 6)
    border = uniform(0.3, 1.5, one, generator)
    core = torch.sigmoid((uniform(0.25, 0.75, one, generator) - shapes.depth) * shapes.radius / border)
    signal = sign * uniform(-4, 1.5, one, generator) + 0.5 * coarse_field(number, size, 20, generator)
    return result + core * cored * shapes.coverage * (signal - result)


def _dark_spots(brain_mask: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """What a quarter of the slices lose in dark spots, in deviations, and how much of a pixel these cover."""
    number, one = len(brain_mask), (len(brain_mask), 1, 1)
    largest = log_uniform(1.5, 16, (number, 1), generator) * chance(0.25, (number, 1), generator)
    count = torch.randint(1, 4, (number, 1), generator=generator, device=brain_mask.device)
    radius = largest * uniform(0.3, 1, (number, 3), generator) * (torch.arange(3, device=brain_mask.device) < count)
    border = log_uniform(0.15, 1.8, one, generator)
    coverage = draw_shapes(brain_mask.float(), radius, border, generator).coverage * brain_mask
    return coverage * uniform(0.5, 4, one, generator), coverage


def make_lesions(
    image: Tensor,
    brain_mask: Tensor,
    generator: Generator,
    lesion_fraction: float = 0.88,
    polarity: str = "hyperintense",
    radii: Callable[..., tuple[Tensor, Tensor]] = lesion_radii,
    small_contrast: tuple[float, float] = (0.8, 3.5),
    large_contrast: tuple[float, float] = (0.5, 5.5),
    border: tuple[float, float] = (0.3, 3.0),
) -> tuple[Tensor, Tensor, Tensor]:
    """Put lesions into healthy slices, and dark spots, which are none, into some.

    Args:
        image: Slices (N, M, H, W) in robust deviations of the brain from its median.
        brain_mask: (N, 1, H, W), bool.
        generator: Source of randomness, on the device of ``image``.
        lesion_fraction: Part of the slices with lesions, in [0, 1].
        polarity: "hyperintense", or "both" for lesions brighter or darker than the tissue.
        radii: Draws their number and sizes, see `lesion_radii`.
        small_contrast: Lowest and highest brightness, in deviations, in slices of small lesions.
        large_contrast: The same in slices with large ones.
        border: Narrowest and widest border in pixels.

    Returns:
        Slices with lesions, the same outside of them; the lesions, (N, 1, H, W), bool; and the radius in pixels of
        each pixel's nearest lesion, (N, 1, H, W).
    """
    number, one, inside, first = len(image), (len(image), 1, 1), brain_mask[:, 0], image[:, 0]
    radius, has_large = radii(number, generator)
    radius = radius * chance(lesion_fraction, (number, 1), generator)
    places = lesion_places(first, inside, generator)
    shapes = draw_shapes(places, radius, log_uniform(*border, one, generator), generator)
    solid = torch.sigmoid(3 * (blur(first, (0.6, 0.6)) + 1.3))
    spares_fluid = chance(0.75, one, generator)
    shapes = shapes._replace(coverage=torch.where(spares_fluid, shapes.coverage * solid, shapes.coverage) * inside)
    filled = []
    for channel in image.unbind(1):
        small, large = (log_uniform(*ends, (number, 1), generator) for ends in (small_contrast, large_contrast))
        level = torch.where(has_large[:, None], large, small) * (0.3 * normal(radius.shape, generator)).exp()
        level = level.gather(1, shapes.nearest.flatten(1)).view(first.shape)
        sign = 1.0 if polarity == "hyperintense" else 2.0 * chance(0.5, one, generator) - 1
        filled.append(fill_shapes(channel, shapes, level, sign, generator))
    label = (shapes.coverage > 0.5) & inside
    if polarity == "hyperintense":
        loss, coverage = _dark_spots(inside, generator)
        filled = [channel - loss for channel in filled]
        label = label & (coverage < 0.4)
    return torch.stack(filled, dim=1), label[:, None], shapes.radius[:, None]
