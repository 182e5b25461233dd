"""What the networks of IterMask are trained on: slices with a hidden area, made on the training device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.engines import PrepareBatch
from torch import Tensor, nn

from ..method.itermask import hide
from ..method.model import Model
from ..method.precision import autocast


class TrainedNetworks(nn.Module):
    """The networks of a model, whose parameters it shares, as the one module that a training step runs.

    Args:
        model: Its networks are trained.
        precision: Of the forward and backward passes, see `precision.autocast`; weights and loss are float32.
    """

    def __init__(self, model: Model, precision: str = "float32"):
        super().__init__()
        self.precision = precision
        for name in model.networks:
            self.add_module(name, getattr(model, name))

    def forward(self, inputs: Tensor) -> Tensor:
        """Run each network on its input, (N, C, H, W), and join their channels.

        The first-iteration network of `IterMask` gets the second half of the channels, the high-frequency image; every
        other network gets all of them.
        """
        high = inputs[:, inputs.shape[1] // 2 :]
        with autocast(self.precision, inputs.device):
            outputs = [
                network(high if name == "first_iteration" else inputs) for name, network in self.named_children()
            ]
        return torch.cat(outputs, dim=1).float()


class PrepareCorruptedBatch(PrepareBatch):
    """Hide a random part of each slice under noise, on the training device (Liang et al. 2024, section 2.1).

    The networks are asked for the whole slice, so the mean squared error over the channels that come out is the mean
    of both networks' errors. They share no parameter and Adam scales each parameter by its own gradients, so one pass
    trains both as two trainings would.

    Args:
        spatial_masks: Draws hidden pixels from brain masks (N, 1, H, W) and a generator: a function of `masks`.
        seed: Seed of masks and noise.

    Attributes:
        iteration: What is drawn depends on it and on ``seed`` alone.
    """

    def __init__(self, spatial_masks: Callable[[Tensor, torch.Generator], Tensor], seed: int = 0):
        self.spatial_masks, self.seed, self.iteration = spatial_masks, seed, 0

    def __call__(  # type: ignore[override]  # the engine always gives a device
        self, batchdata: dict[str, Tensor], device: torch.device, non_blocking: bool = False, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Give (N, 2 M, H, W) of corrupted and high-frequency image, and the slice twice, (N, 2 M, H, W)."""
        image, high, brain_mask = (
            batchdata[key].to(device, non_blocking=non_blocking) for key in ("image", "high_frequency", "brain_mask")
        )
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + self.iteration)
        spatial_mask = self.spatial_masks(brain_mask > 0, generator)
        noise = torch.randn(image.shape, generator=generator, device=device)
        return torch.cat([hide(image, spatial_mask, noise), high], dim=1), image.repeat(1, 2, 1, 1)
