"""What the lesion network is trained on: slices with made lesions."""

from __future__ import annotations

import math
from functools import partial

import torch
from monai.engines import PrepareBatch
from torch import Generator, Tensor

from ..common.fields import blur_inside, chance, normal
from ..method.default import standardize
from ..method.lesion_network import to_network
from .augmentation import random_appearance, random_deformation, random_quality
from .lesions import make_lesions

SMOOTHING = 1.2  # pixels
WITH_LESIONS_FRACTION = 0.4  # of the slices that are standardized with their lesions, as volumes are
SCAN_FRACTION, SCAN_SHIFT, SCAN_SCALE = 0.5, 0.1, 0.12  # slices by their scan's scale; deviations; log of the scale
SLICE_SHIFT, SLICE_SCALE = 0.3, 0.18  # the same for slices by their own scale


class PrepareLesionBatch(PrepareBatch):
    """Give slices made lesions: the training of the lesion network.

    The network sees the slice and its brain, all of which may hold lesions; it is asked for the healthy slice and for
    the lesions.

    Args:
        seed: Seed of all that is drawn.
        lesion_fraction: Part of the slices, in [0, 1], that get lesions.
        sign: See `make_lesions`.
        doubt: Pixels whose smoothed intensity lies this many robust deviations of the brain above its median may be
            lesions that nobody drew: the network is not taught that they are none, where slices are not certain.
        augment: Move slices and change contrast and quality at random.
    """

    def __init__(
        self,
        seed: int = 0,
        lesion_fraction: float = 0.88,
        sign: str = "bright",
        doubt: float = math.inf,
        augment: bool = True,
    ):
        self.seed, self.augment = seed, augment
        self.lesions = partial(make_lesions, lesion_fraction=lesion_fraction, sign=sign)
        self.doubt = doubt
        self.iteration = 0

    def __call__(  # type: ignore[override]  # the engine always gives a device
        self, batchdata: dict[str, Tensor], device: torch.device, non_blocking: bool = False, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Give (N, M + 1, H, W) of slice and brain mask, and (N, M + 3, H, W) of what is asked for.

        The batch holds the slices as `StandardizeByScand` made them, under ``prepared``, their ``brain_mask``, and
        whether they are ``certain``. Asked for are the healthy slice, the lesions, whether each pixel's lesion counts,
        and the brain mask.
        """
        healthy, brain, certain = (
            batchdata[key].to(device, non_blocking=non_blocking) for key in ("prepared", "brain_mask", "certain")
        )
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + self.iteration)
        brain_mask = brain > 0
        if self.augment:
            healthy, brain_mask = moved(healthy, brain_mask, generator)
            healthy = random_appearance(healthy, generator)
        uncertain = ~(certain > 0).view(-1, 1, 1, 1)
        doubtful = (smooth_level(healthy, brain_mask) > self.doubt) & uncertain & brain_mask
        lesioned, label = self.lesions(healthy, brain_mask, generator)
        if self.augment:
            lesioned, healthy = random_quality(lesioned, healthy, brain_mask, generator)
        center, scale = random_scale(lesioned, brain_mask, label, generator)
        seen, asked = (to_network((image - center) / scale, brain_mask) for image in (lesioned, healthy))
        counts = brain_mask & ~(doubtful & ~label)
        return torch.cat([seen, brain_mask], dim=1), torch.cat([asked, label, counts, brain_mask], dim=1)


def moved(image: Tensor, brain_mask: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Move slices and brain masks alike, see `random_deformation`."""
    brain = brain_mask.to(image.dtype)
    both = random_deformation(torch.cat([image * brain, brain], dim=1), generator)
    return both[:, :-1] / both[:, -1:].clamp(min=0.5), both[:, -1:] > 0.5


def smooth_level(image: Tensor, brain_mask: Tensor) -> Tensor:
    """Smoothed intensity of slices inside the brain, the highest of the modalities, (N, 1, H, W)."""
    smooth = blur_inside(image, brain_mask.to(image.dtype), (SMOOTHING, SMOOTHING), 0.1)
    return smooth.amax(dim=1, keepdim=True)


def random_scale(image: Tensor, brain_mask: Tensor, label: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw by what median and deviation a slice is standardized.

    They are those of its scan, or of what is not lesion in the slice, or of the whole slice; changed a little, because
    lesions elsewhere in a scan change them, and a slice is no scan.

    Args:
        image: Slices (N, M, H, W), in deviations of their scan.
        brain_mask: (N, 1, H, W), bool.
        label: Lesions (N, 1, H, W), bool.
        generator: Source of randomness.

    Returns:
        Median and deviation (N, M, 1, 1).
    """
    one = (len(image), 1, 1, 1)
    with_lesions = chance(WITH_LESIONS_FRACTION, one, generator)
    _, center, scale = standardize(image, torch.where(with_lesions, brain_mask, brain_mask & ~label))
    by_scan = chance(SCAN_FRACTION, one, generator)
    center, scale = torch.where(by_scan, 0.0, center), torch.where(by_scan, 1.0, scale)
    shift, spread = (torch.where(by_scan, *pair) for pair in ((SCAN_SHIFT, SLICE_SHIFT), (SCAN_SCALE, SLICE_SCALE)))
    center = center + scale * shift * normal(center.shape, generator)
    return center, scale * (spread * normal(center.shape, generator)).exp()
