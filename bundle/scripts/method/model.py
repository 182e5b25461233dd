"""What every model keeps beside its weights: its settings as text, and thresholds that are measured."""

# No `from __future__ import annotations`: TorchScript cannot read annotations of buffers as text.

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .description import DESCRIPTION_BYTES, to_description

FORMAT = 1  # of the description; raise it when older programs would misread a file


class Model(nn.Module):
    """A model whose state dict says all that is needed to make it again.

    Its buffers are the thresholds, which are NaN until they are calibrated, and ``description``, all settings as text,
    see `to_description`.

    Args:
        modalities: Names of the M modalities, in the order of the channels.
    """

    networks: list[str] = []  # names of the attributes that hold them
    thresholds: Sequence[str] = ()
    description: Tensor

    def __init__(self, modalities: Sequence[str]):
        super().__init__()
        self.modality_names = list(modalities)
        self.modalities = len(self.modality_names)
        for name in self.thresholds:
            self.register_buffer(name, torch.tensor(math.nan))
        self.register_buffer("description", torch.zeros(DESCRIPTION_BYTES, dtype=torch.uint8))

    def describe(self, **settings: object) -> None:
        """Note the settings in ``description``; a subclass calls it at the end of its constructor, with its own."""
        sizes = {name: getattr(getattr(self, name), "size", None) for name in self.networks}
        common = {"format": FORMAT, "method": type(self).__name__, "modalities": self.modality_names}
        self.description.copy_(to_description({**common, "network": sizes[self.networks[0]], **settings}))

    def threshold_values(self) -> list[Tensor]:
        """Give the buffers that calibration sets."""
        raise NotImplementedError

    def check_calibrated(self) -> None:
        """Refuse to segment with a threshold that was never measured.

        Raises:
            RuntimeError: When one is NaN.
        """
        for threshold in self.threshold_values():
            if bool(threshold.isnan()):
                raise RuntimeError(
                    "The model lacks a threshold: run configs/train.json to the end, or `run calibrate` on its file."
                )
