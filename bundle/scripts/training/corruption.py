"""What the networks are trained on: slices with a hidden area, made on the training device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from monai.engines import PrepareBatch
from torch import Tensor, nn

from ..method.default import BACKGROUND
from ..method.precision import autocast, check_precision
from ..method.refinement import Refinement, hide
from .augmentation import random_affine, random_intensity
from .masks import coarse_noise

NOISE_DEVIATION = 0.7  # of noise that stands for a hidden area, in thirds of a robust deviation


class Reconstructions(nn.Module):
    """The module that a training step runs: the networks of a model, whose parameters it shares.

    Args:
        model: The networks to train.
        trained: Names of those to train, such as ``masked``; others stay as they are; None: all.
        precision: Of the forward and backward passes, see `precision.autocast`; weights and loss are float32.

    Raises:
        ValueError: When ``trained`` names no network, or ``precision`` none.
    """

    def __init__(self, model: Refinement, trained: Sequence[str] | None = None, precision: str = "float32"):
        super().__init__()
        check_precision(precision)
        self.precision = precision
        names = model.networks
        trained = names if trained is None else trained
        if not trained or any(name not in names for name in trained):
            raise ValueError(f"`trained` must list one or both of {', '.join(names)}, got {list(trained)}.")
        for name in trained:
            self.add_module(name, getattr(model, name))

    def forward(self, corrupted_and_high: Tensor) -> Tensor:
        """Run each network on its input, (N, 2 M, H, W) of corrupted and high-frequency image, and join the channels.

        The first-iteration network gets the second half of the channels, the others all of them.
        """
        high = corrupted_and_high[:, corrupted_and_high.shape[1] // 2 :]
        inputs = {"first_iteration": high}
        with autocast(self.precision, corrupted_and_high.device):
            outputs = [network(inputs.get(name, corrupted_and_high)) for name, network in self.named_children()]
        return torch.cat(outputs, dim=1).float()


class PrepareCorruptedBatch(PrepareBatch):
    """Hide a random part of each slice under noise, on the training device (Liang et al. 2024, section 2.1).

    The networks are asked for the whole slice, so the mean squared error over the channels that come out is the mean
    of both networks' errors. They share no parameter and AdamW scales each parameter by its own gradients, so one
    pass trains both as two trainings would.

    Args:
        spatial_masks: Draws hidden pixels from brain masks (N, 1, H, W) and a generator: a function of `masks`.
        seed: Seed of masks and noise.
        networks: Number of networks that are trained.
    """

    def __init__(self, spatial_masks: Callable[[Tensor, torch.Generator], Tensor], seed: int = 0, networks: int = 2):
        self.spatial_masks = spatial_masks
        self.seed = seed
        self.networks = networks
        self.iteration = 0

    def __call__(  # type: ignore[override]  # the engine always gives a device
        self, batchdata: dict[str, Tensor], device: torch.device, non_blocking: bool = False, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Give (N, 2 M, H, W) of corrupted and high-frequency image, and the targets (N, M per network, H, W).

        The batch holds the high-frequency image, as `HighFrequencyd` made it, under ``prepared``.
        """
        image, high, brain_mask = (
            batchdata[key].to(device, non_blocking=non_blocking) for key in ("image", "prepared", "brain_mask")
        )
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + self.iteration)
        spatial_mask = self.spatial_masks(brain_mask > 0, generator)
        noise = torch.randn(image.shape, generator=generator, device=device)
        corrupted = hide(image, spatial_mask, noise)
        return torch.cat([corrupted, high], dim=1), image.repeat(1, self.networks, 1, 1)


class PrepareMaskedBatch(PrepareBatch):
    """Hide the low frequencies, or all, of a random area of changed slices: the training of `ProbabilisticIterMask`.

    Args:
        spatial_masks: Draws hidden pixels from brain masks (N, 1, H, W) and a generator: a function of `masks`.
        seed: Seed of all that is drawn.
        noise_range: Amplitude of the coarse noise over the hidden pixels, in robust standard deviations of the brain.
        noise_fraction: Part of the slices, in [0, 1], whose hidden pixels hold noise alone.
        augment: Flip, move and change intensities at random.
    """

    def __init__(
        self,
        spatial_masks: Callable[[Tensor, torch.Generator], Tensor],
        seed: int = 0,
        noise_range: Sequence[float] = (0.5, 3.0),
        noise_fraction: float = 0.25,
        augment: bool = True,
    ):
        self.spatial_masks = spatial_masks
        self.seed = seed
        self.noise_range = noise_range
        self.noise_fraction = noise_fraction
        self.augment = augment
        self.iteration = 0

    def __call__(  # type: ignore[override]  # the engine always gives a device
        self, batchdata: dict[str, Tensor], device: torch.device, non_blocking: bool = False, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Give (N, M + 1, H, W) of corrupted slice and spatial mask, and (N, M + 2, ...) of slice and both masks.

        The batch holds the slices as `StandardizeBraind` made them, under ``prepared``.
        """
        standard, brain = (batchdata[key].to(device, non_blocking=non_blocking) for key in ("prepared", "brain_mask"))
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + self.iteration)
        brain_mask = brain > 0
        if self.augment:
            standard, brain_mask = random_affine(standard, brain_mask, generator)
            standard = random_intensity(standard, generator)
        standard = torch.where(brain_mask, standard, torch.full_like(standard, BACKGROUND))
        spatial_mask = self.spatial_masks(brain_mask, generator)
        draw = torch.rand(2, len(standard), 1, 1, 1, generator=generator, device=device)
        low, high = self.noise_range
        noisy = standard + (low + (high - low) * draw[0]) / 3 * coarse_noise(standard.shape, generator)
        pure = NOISE_DEVIATION * torch.randn(standard.shape, generator=generator, device=device)
        filling = torch.where(draw[1] < self.noise_fraction, pure, noisy)
        hidden = spatial_mask.to(standard.dtype)
        inputs = torch.cat([hide(standard, spatial_mask, filling), hidden], dim=1)
        return inputs, torch.cat([standard, hidden, brain_mask.to(standard.dtype)], dim=1)
