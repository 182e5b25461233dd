"""What the lesion network is trained on: slices with synthetic lesions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from monai.engines import PrepareBatch
from torch import Generator, Tensor

from ..common.fields import blur_inside, chance, normal
from ..method.lesion_network import standardize, to_network
from .augmentation import random_appearance, random_deformation, random_quality
from .lesions import make_lesions


class PrepareLesionBatch(PrepareBatch):
    """Give slices synthetic lesions: the training of the lesion network.

    The network sees the slice and its brain; it is asked for the healthy slice and for the lesions.

    Args:
        seed: Seed of all that is drawn.
        lesions: Puts lesions into slices, see `make_lesions`.
        doubt: Pixels whose smoothed intensity lies this many robust deviations of the brain above its median may be
            lesions that nobody drew, where slices are not certain.
        doubt_weight: How much such pixels count as healthy, in [0, 1].
        small_weight: Highest weight of the pixels of a small lesion beside those of large ones, 1 or more.
        full_radius: Lesions of this radius in pixels and above have weight 1.
        augment: Move slices and change contrast and quality at random.
    """

    def __init__(
        self,
        seed: int = 0,
        lesions: Callable[..., tuple[Tensor, Tensor, Tensor]] = make_lesions,
        doubt: float = math.inf,
        doubt_weight: float = 0.0,
        small_weight: float = 2.0,
        full_radius: float = 6.0,
        augment: bool = True,
    ):
        self.seed, self.lesions, self.augment = seed, lesions, augment
        self.doubt, self.doubt_weight = doubt, doubt_weight
        self.small_weight, self.full_radius = small_weight, full_radius
        self.iteration = 0

    def __call__(  # type: ignore[override]  # the engine always gives a device
        self, batchdata: dict[str, Tensor], device: torch.device, non_blocking: bool = False, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Give (N, M + 1, H, W) of slice and brain mask, and (N, M + 3, H, W) of what is asked for.

        The batch holds slices in robust deviations of their scan's brain under ``image``, their ``brain_mask``, and
        whether they are ``certain`` to be healthy. Asked for are the healthy slice, the lesions, the weight of each
        pixel, and the brain mask.
        """
        healthy, brain, certain = (
            batchdata[key].to(device, non_blocking=non_blocking) for key in ("image", "brain_mask", "certain")
        )
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + self.iteration)
        brain_mask = brain > 0
        if self.augment:
            healthy, brain_mask = moved(healthy, brain_mask, generator)
            healthy = random_appearance(healthy, generator)
        uncertain = ~(certain > 0).view(-1, 1, 1, 1)
        doubtful = (smooth_level(healthy, brain_mask) > self.doubt) & uncertain
        lesioned, label, radius = self.lesions(healthy, brain_mask, generator)
        if self.augment:
            lesioned, healthy = random_quality(lesioned, healthy, brain_mask, generator)
        center, scale = random_scale(lesioned, brain_mask, label, generator)
        seen, asked = (to_network((image - center) / scale, brain_mask) for image in (lesioned, healthy))
        small = (self.full_radius / radius.clamp(min=0.1)).clamp(1, self.small_weight)
        weight = torch.where(label, small, torch.where(doubtful, self.doubt_weight, 1.0)) * brain_mask
        return torch.cat([seen, brain_mask], dim=1), torch.cat([asked, label, weight, brain_mask], dim=1)


def moved(image: Tensor, brain_mask: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Move slices and brain masks alike, see `random_deformation`."""
    brain = brain_mask.to(image.dtype)
    both = random_deformation(torch.cat([image * brain, brain], dim=1), generator)
    return both[:, :-1] / both[:, -1:].clamp(min=0.5), both[:, -1:] > 0.5


def smooth_level(image: Tensor, brain_mask: Tensor, sigma: float = 1.2) -> Tensor:
    """Smoothed intensity of slices inside the brain, the highest of the modalities, (N, 1, H, W)."""
    smooth = blur_inside(image, brain_mask.to(image.dtype), (sigma, sigma), 0.1)
    return smooth.amax(dim=1, keepdim=True)


def random_scale(
    image: Tensor,
    brain_mask: Tensor,
    label: Tensor,
    generator: Generator,
    with_lesions_fraction: float = 0.4,
    by_scan_fraction: float = 0.5,
    by_scan: tuple[float, float] = (0.1, 0.12),
    by_slice: tuple[float, float] = (0.3, 0.18),
) -> tuple[Tensor, Tensor]:
    """Draw by what median and deviation a slice is standardized.

    They are those of its scan, or of what is not lesion in the slice, or of the whole slice; changed a little, because
    lesions elsewhere in a scan change them, and a slice is no scan.

    Args:
        image: Slices (N, M, H, W), in deviations of their scan.
        brain_mask: (N, 1, H, W), bool.
        label: Lesions (N, 1, H, W), bool.
        generator: Source of randomness.
        with_lesions_fraction: Part of the slices that are standardized with their lesions, in [0, 1].
        by_scan_fraction: Part of the slices that keep the scale of their scan, in [0, 1].
        by_scan: Deviations by which the median of these is shifted, and of the logarithm of their scale.
        by_slice: The same for the others.

    Returns:
        Median and deviation (N, M, 1, 1).
    """
    one = (len(image), 1, 1, 1)
    with_lesions = chance(with_lesions_fraction, one, generator)
    _, center, scale = standardize(image, torch.where(with_lesions, brain_mask, brain_mask & ~label))
    of_scan = chance(by_scan_fraction, one, generator)
    center, scale = torch.where(of_scan, 0.0, center), torch.where(of_scan, 1.0, scale)
    shift, spread = (torch.where(of_scan, *pair) for pair in zip(by_scan, by_slice, strict=True))
    center = center + scale * shift * normal(center.shape, generator)
    return center, scale * (spread * normal(center.shape, generator)).exp()
