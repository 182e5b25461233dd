"""What every model keeps beside its weights: its settings as text, and thresholds that are measured."""

# No `from __future__ import annotations`: TorchScript cannot read annotations of buffers as text.

import math
from collections.abc import Sequence
from typing import Any

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

    title = ""  # what tables and pictures call the method
    reconstructs = True  # whether it gives a healthy image
    networks: list[str] = []  # names of the attributes that hold them
    thresholds: Sequence[str] = ()
    scaling: Any = None  # how the training scans were scaled, see `scale_brain_intensity`; None: not at all
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

    def map_threshold(self, threshold_scale: float = 1.0) -> float:
        """Give the threshold of the anomaly map of a volume."""
        raise NotImplementedError

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
