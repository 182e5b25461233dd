"""Both methods as a MONAI inferer: slices or volumes in, named channels out."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.inferers import Inferer
from monai.transforms import RemoveSmallObjects
from monai.utils import convert_to_dst_type
from torch import Tensor
from tqdm import tqdm

from ..common.checks import check_settings
from ..data.morphology import largest_component
from ..data.transforms import LOWEST
from ..method.volume import segment_volume

FAR_FROM_PLANES = 10.0  # mm
logger = logging.getLogger(__name__)


class IterMaskInferer(Inferer):
    """Segment slices (N, M + 1, H, W) or volumes (N, M + 1, X, Y, Z) with `LesionNetwork` or `IterMask`.

    The input holds M modalities and the brain mask as its last channel. `LesionNetwork` sees a volume in all planes at
    once, see `segment_volume`. `IterMask` sees axial slices, scaled as in training, one by one: they are brought to its
    image size, and their results back.

    Args:
        outputs: What the channels of the result are, in this order: ``mask`` (1 = anomalous), ``anomaly_map`` (the
            probability of lesion, or with `IterMask` the squared error), ``reconstruction`` (M channels),
            ``iterations`` (how often a network saw the slice), ``threshold`` (of the anomaly map).
        threshold_scale: Factor on the calibrated threshold; more than 1 marks less.
        tolerance: Of `IterMask`: a slice is done when an iteration unhides less than this part of its mask, in [0, 1].
        max_iterations: Of `IterMask`: a slice is done after this many iterations.
        batch_size: Slices that the networks see at once.
        seed: Seed of the noise that fills hidden pixels.
        least_pixels: Marked areas with fewer pixels are dropped: in each slice (8 neighbors), or in a volume that was
            segmented as a whole (18 neighbors).
        progress: Show a progress bar over the slices of `IterMask`.

    Raises:
        ValueError: When an option is outside its range.
    """

    def __init__(
        self,
        outputs: Sequence[str] = ("mask",),
        threshold_scale: float = 1.0,
        tolerance: float = 0.01,
        max_iterations: int = 100,
        batch_size: int = 32,
        seed: int = 0,
        least_pixels: int = 0,
        progress: bool = False,
    ):
        super().__init__()
        self.outputs, self.progress, self.batch_size = tuple(outputs), progress, batch_size
        self.settings: dict[str, Any] = {
            "threshold_scale": float(threshold_scale),
            "tolerance": float(tolerance),
            "max_iterations": int(max_iterations),
            "seed": int(seed),
            "least_pixels": int(least_pixels),
        }
        check_settings(**self.settings)  # MONAI Label sets them for each request
        # half a pixel less, where MONAI asks for whole ones: versions of skimage differ at just this size
        least: Any = least_pixels - 0.5
        self.drop_small = RemoveSmallObjects(least, connectivity=2) if least_pixels > 1 else None

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Any, *args: object, **kwargs: object) -> Tensor:
        """Give the channels named by ``outputs``, (N, K, H, W[, D]) float32, with the input's meta data."""
        expected = network.modalities + 1
        if inputs.ndim not in (4, 5) or inputs.shape[1] != expected:
            raise ValueError(
                f"`inputs` must have shape (N, {expected}, H, W) or (N, {expected}, H, W, D), the last channel being "
                f"the brain mask, got {list(inputs.shape)}: check `modalities`."
            )
        iterates = hasattr(network, "refine")
        plain = (inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs).float()
        affine, name = _space_of(inputs)
        if plain.ndim == 4 and iterates:
            result = self._refine(plain, network)
        elif plain.ndim == 4:
            spacing = [network.pixel_size] * 3
            slices = [self._segment(slice_[..., None], network, spacing, "slice") for slice_ in plain]
            result = torch.stack(slices)[..., 0]
        elif iterates:
            result = torch.stack([self._refine_axial_slices(volume, network, affine, name) for volume in plain])
        else:
            spacing = affine_to_spacing(affine).tolist()
            result = torch.stack([self._segment(volume, network, spacing, name) for volume in plain])
        return convert_to_dst_type(result, inputs, dtype=torch.float32)[0] if isinstance(inputs, MetaTensor) else result

    def _segment(self, volume: Tensor, network: Any, spacing: Sequence[float], name: str) -> Tensor:
        """Find the lesions of a volume (M + 1, X, Y, Z) in all its planes at once, (K, X, Y, Z)."""
        scale = self.settings["threshold_scale"]
        try:
            found = segment_volume(network, volume[:-1], volume[-1:] > 0.5, spacing, scale, self.batch_size)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
        mask = found.mask.float()
        channels = {
            "mask": mask if self.drop_small is None else torch.as_tensor(self.drop_small(mask)),
            "anomaly_map": found.probability,
            "reconstruction": found.reconstruction,
            "iterations": torch.ones_like(mask),
            "threshold": torch.full_like(mask, found.threshold),
        }
        return torch.cat([channels[output] for output in self.outputs])

    def _refine_axial_slices(self, volume: Tensor, network: Any, affine: Tensor, name: str) -> Tensor:
        """Segment the axial slices of a volume (M + 1, X, Y, Z) to (K, X, Y, Z).

        The networks see them in the field of view that they were trained with, around the largest part of the brain:
        stray voxels are no brain.
        """
        brain = torch.from_numpy(largest_component(volume[-1].cpu().numpy() > 0.5, connectivity=3))
        padding = window(brain, affine_to_spacing(affine).tolist(), network.field_of_view.tolist())
        if (lost := 1 - float(F.pad(brain, padding).sum() / brain.sum().clamp(min=1))) > 0 and brain.any():
            logger.warning(
                f"{name}: the window of the network leaves out {lost:.1%} of the brain, where nothing is marked: it "
                f"shows {' x '.join(f'{mm:.0f}' for mm in network.field_of_view.tolist())} mm, as in training."
            )
        _warn_of_planes(brain, affine.cpu(), network.planes, name)
        shown = torch.cat([F.pad(volume[:-1], padding, value=LOWEST), F.pad(volume[-1:], padding)])
        found = self._refine(shown.permute(3, 0, 1, 2), network).permute(1, 2, 3, 0)
        return F.pad(found, [-number for number in padding])

    def _refine(self, slices: Tensor, network: Any) -> Tensor:
        with_brain = (slices[:, -1] > 0.5).flatten(1).any(dim=1).nonzero()[:, 0]
        channels = sum(network.modalities if name == "reconstruction" else 1 for name in self.outputs)
        result = slices.new_zeros(len(slices), channels, *slices.shape[2:])
        with tqdm(total=len(with_brain), unit="slice", disable=not self.progress, leave=False) as bar:
            for part in with_brain.split(self.batch_size):
                result[part] = self._refine_batch(slices[part], network)
                bar.update(len(part))
        return result

    def _refine_batch(self, slices: Tensor, network: Any) -> Tensor:
        size, working_size = slices.shape[-2:], (network.image_size, network.image_size)
        brain_mask = slices[:, -1:] > 0.5
        small = F.interpolate(slices[:, :-1], working_size, mode="bilinear")
        small_brain = F.interpolate(slices[:, -1:], working_size, mode="nearest-exact") > 0.5
        options = {name: self.settings[name] for name in ("threshold_scale", "tolerance", "max_iterations", "seed")}
        mask, anomaly_map, reconstruction, iterations = network.refine(
            small, small_brain, batch_size=self.batch_size, **options
        )
        if self.drop_small is not None:
            mask = torch.stack([torch.as_tensor(self.drop_small(plane)) for plane in mask.float()]) > 0
        threshold = network.map_threshold(self.settings["threshold_scale"])
        channels = {
            "mask": F.interpolate(mask.float(), size, mode="nearest-exact") * brain_mask,
            "anomaly_map": F.interpolate(anomaly_map, size, mode="bilinear") * brain_mask,
            "reconstruction": F.interpolate(reconstruction, size, mode="bilinear"),
            "iterations": iterations[:, None, None, None].expand(-1, 1, *size).float(),
            "threshold": torch.full_like(brain_mask, threshold, dtype=torch.float32),
        }
        return torch.cat([channels[name] for name in self.outputs], dim=1)


def _space_of(inputs: Tensor) -> tuple[Tensor, str]:
    """The affine of a volume, and what to call it; of one without meta data voxels of 1 mm."""
    if not isinstance(inputs, MetaTensor):
        return torch.eye(4), "volume"
    source = inputs.meta.get("filename_or_obj", "volume")
    return inputs.affine.reshape(-1, 4, 4)[0], source if isinstance(source, str) else source[0]


def window(brain_mask: Tensor, spacing: Sequence[float], field_of_view: Sequence[float]) -> list[int]:
    """How to pad (negative: crop) a volume so that its axial slices show a field of view with the brain in its center.

    Rows or columns of background at the edges change nothing: the window moves with the brain.

    Args:
        brain_mask: The brain (X, Y, Z), bool.
        spacing: Millimeters between voxels.
        field_of_view: Length in mm along the first and the second axis; zeros: leave the volume as it is.

    Returns:
        Numbers before and after along the last axis, the second and the first, as `torch.nn.functional.pad` takes them.
    """
    padding = [0, 0]
    if not brain_mask.any() or not all(length > 0 for length in field_of_view):
        return padding * 3
    for axis in (1, 0):
        on = brain_mask.any(dim=2).any(dim=1 - axis).nonzero()
        length = max(1, round(field_of_view[axis] / spacing[axis]))
        start = math.floor(int(on.min() + on.max() + 1 - length) / 2)
        padding += [-start, start + length - brain_mask.shape[axis]]
    return padding


def _warn_of_planes(brain: Tensor, affine: Tensor, planes: Tensor, name: str) -> None:
    """Log how many axial slices of a brain (X, Y, Z) lie far from those that a model was trained on.

    Positions are those of the scan's header, so they mean something where scans are registered as the training's.
    """
    low, high = planes.tolist()  # in mm; inf and -inf where unknown
    positions = affine[2, 3] + affine[2, 2] * brain.flatten(0, 1).any(dim=0).nonzero()[:, 0]
    far = int(((positions < low - FAR_FROM_PLANES) | (positions > high + FAR_FROM_PLANES)).sum())
    if far and low <= high:
        logger.warning(
            f"{name}: {far} of {len(positions)} axial slices lie more than {FAR_FROM_PLANES:g} mm from those that the "
            f"model was trained on (z = {low:g} to {high:g} mm): their masks are not to be trusted."
        )
