"""The refinement as a MONAI inferer: slices or volumes in, named channels out."""

from __future__ import annotations

import logging
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
from ..common.threads import fit_threads
from ..method.former_volume import is_whole, segment_volume
from ..method.parallel import in_threads
from ..method.precision import in_precision
from ..method.refinement import Refinement
from .geometry import largest_part, part_cut_off, window, with_room

OUTPUTS = ("mask", "anomaly_map", "reconstruction", "iterations", "threshold")
FAR_FROM_PLANES = 10.0  # mm
FAR_TOGETHER = (
    f"{{0}} of their {{1}} axial slices lie more than {FAR_FROM_PLANES:g} mm from those that the model was trained on: "
    "their masks are not to be trusted; the records of the cases tell which."
)

THICKEST_SLICE = 3.0  # mm
COARSE_TOGETHER = "voxels much coarser than the training's: blurred slices are marked more, do not trust these masks."
RULE_TOGETHER = "no whole brain: segmented slice by slice, at the calibrated threshold, whatever the `threshold_rule`."
logger = logging.getLogger(__name__)


def outside_planes(with_brain: Tensor, affine: Tensor, planes: Tensor) -> Tensor | None:
    """Tell which slices with brain lie far from the planes that the model was trained on.

    Positions are those of the scan's header, so they mean something where scans are registered as the training's.

    Args:
        with_brain: Which slices hold brain, bool (D,).
        affine: Of the volume in RAS order (4, 4).
        planes: Lowest and highest position of the training slices in mm; inf and -inf: unknown.

    Returns:
        A bool for each slice with brain; None where the planes are unknown.
    """
    low, high = planes.tolist()
    if low > high:
        return None
    positions = affine[2, 3] + affine[2, 2] * with_brain.nonzero()[:, 0].to(affine)
    return (positions < low - FAR_FROM_PLANES) | (positions > high + FAR_FROM_PLANES)


def warn_of_planes(with_brain: Tensor, affine: Tensor, planes: Tensor, name: str) -> None:
    """Log how many slices of a volume lie far from the planes that the model was trained on.

    Args:
        with_brain: As in `outside_planes`.
        affine: Likewise.
        planes: Likewise; where they are unknown nothing is said.
        name: Of the volume, for the message.
    """
    outside = outside_planes(with_brain, affine, planes)
    if outside is None:
        return
    if far := int(outside.sum()):
        low, high = planes.tolist()
        logger.warning(
            f"{name}: {far} of {len(outside)} axial slices lie more than {FAR_FROM_PLANES:g} mm from those that the "
            f"model was trained on (z = {low:g} to {high:g} mm): their masks are not to be trusted.",
            extra={"together": FAR_TOGETHER, "counts": (far, len(outside))},
        )


def warn_of_spacing(spacing: Tensor, field_of_view: Tensor, image_size: int, name: str) -> None:
    """Log that a volume is coarser than what the network works at, in its slices or across them.

    Args:
        spacing: Of the voxels along each axis in mm, (3,); the slices are axial.
        field_of_view: Height and width of the training slices in mm, (2,); zeros: unknown, the plane is not judged.
        image_size: Height and width of the network's grid in pixels.
        name: Of the volume, for the message.
    """
    pixel = field_of_view.cpu() / image_size
    blurred = bool(((pixel > 0) & (spacing[:2].cpu() > 1.25 * pixel)).any())
    if blurred or float(spacing[2]) > THICKEST_SLICE:
        logger.warning(
            f"{name}: voxels of {' x '.join(f'{mm:.3g}' for mm in spacing.tolist())} mm are coarse for a network that "
            f"works on pixels of {' x '.join(f'{mm:.3g}' for mm in pixel.tolist())} mm: where slices are blurred it "
            "marks more; do not trust the mask unless the model was trained on such scans.",
            extra={"together": COARSE_TOGETHER, "counts": ()},
        )


def warn_of_rule(threshold_rule: str, name: str) -> None:
    """Log that a volume is segmented slice by slice, where its threshold is the calibrated one."""
    logger.warning(
        f"{name}: shows no whole brain, so that it is segmented slice by slice, at the calibrated threshold: "
        f"`threshold_rule` {threshold_rule} is for whole volumes.",
        extra={"together": RULE_TOGETHER, "counts": ()},
    )


def is_for_volumes(network: Refinement, brain_mask: Tensor, spacing: Tensor) -> bool:
    """Whether a model has a network for whole volumes, and a brain (H, W, D), bool, is whole; spacing in mm, (3,)."""
    return hasattr(network, "lesions") and is_whole(largest_part(brain_mask), spacing.tolist())


class IterMaskInferer(Inferer):
    """Segment slices (N, M + 1, H, W), whole volumes, or slice by slice the axial slices of others (N, M + 1, H, W, D).

    The input holds M modalities, scaled as in training, and the brain mask as its last channel. Slices without brain
    are skipped, the others are brought to the model's image size and their results back to the input's. Volumes with
    meta data (`MetaTensor`) that show the brain in all three directions go to the network for volumes, if the model
    has one, see `segment_volume`. Others are shown in the field of view of the training slices, see `window`.

    Args:
        outputs: What the channels of the result are, in this order: ``mask`` (1 = anomalous), ``anomaly_map`` (the
            score; in whole volumes the probability of lesion), ``reconstruction`` (M channels), ``iterations`` (how
            often a network saw the slice), ``threshold`` (of the anomaly map: whole volumes have another than slices).
        threshold_scale: Factor on the calibrated threshold; more than 1 marks less.
        threshold_rule: How whole volumes get the threshold of their subject, see `segment_volume`.
        stop_shrink: A slice is done when a pass unhides less than this part of its mask, in [0, 1].
        max_passes: A slice is done after this many passes of the masked network.
        batch_size: Slices that the networks see at once.
        seed: Seed of the noise that fills hidden pixels.
        precision: Of the networks: ``"float32"``, ``"bfloat16"``, or ``"auto"`` (bfloat16 where the device computes it
            natively).
        least_pixels: Marked areas with fewer pixels are dropped: in each slice (8 neighbors), or in a whole volume (18
            neighbors).
        progress: Show a progress bar over the slices.

    Raises:
        ValueError: When an option is outside its range.
    """

    def __init__(
        self,
        outputs: Sequence[str] = ("mask",),
        threshold_scale: float = 1.0,
        stop_shrink: float = 0.01,
        max_passes: int = 100,
        batch_size: int = 32,
        seed: int = 0,
        precision: str = "float32",
        least_pixels: int = 0,
        progress: bool = False,
        threshold_rule: str = "prior",
    ):
        super().__init__()
        unknown = [name for name in outputs if name not in OUTPUTS]
        if unknown or not outputs:
            raise ValueError(f"`outputs` must be some of {', '.join(OUTPUTS)}, got {list(outputs)}.")
        self.precision = precision
        self.outputs = tuple(outputs)
        self.options: dict[str, Any] = {
            "threshold_scale": float(threshold_scale),
            "stop_shrink": float(stop_shrink),
            "max_passes": int(max_passes),
            "batch_size": int(batch_size),
            "seed": int(seed),
        }
        self.threshold_rule = threshold_rule
        self.settings = {
            **self.options,
            "precision": precision,
            "least_pixels": least_pixels,
            "threshold_rule": threshold_rule,
        }
        check_settings(**self.settings)
        del self.settings["batch_size"]  # changes rounding at most
        self.progress = progress
        # half a pixel less, where MONAI asks for whole ones: versions of skimage differ at just this size
        least: Any = least_pixels - 0.5
        self.drop_small = RemoveSmallObjects(least, connectivity=2) if least_pixels > 1 else None

    @torch.no_grad()
    def __call__(  # type: ignore[override]  # a model, not any function
        self, inputs: Tensor, network: Refinement, *args: object, **kwargs: object
    ) -> Tensor:
        """Give the channels named by ``outputs``, (N, K, H, W[, D]) float32, with the input's meta data."""
        expected = network.modalities + 1
        if inputs.ndim not in (4, 5) or inputs.shape[1] != expected:
            raise ValueError(
                f"`inputs` must have shape (N, {expected}, H, W) or (N, {expected}, H, W, D), the last channel being "
                f"the brain mask, got {list(inputs.shape)}: check `modalities`."
            )
        fit_threads()
        network = in_threads(in_precision(network, self.precision))
        plain = (inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs).float()
        if plain.ndim == 5:
            spacing, name = None, "volume"
            whole = False
            if isinstance(inputs, MetaTensor):
                affine, source = inputs.affine.reshape(-1, 4, 4)[0], inputs.meta.get("filename_or_obj", name)
                name = source if isinstance(source, str) else source[0]
                spacing = affine_to_spacing(affine)
                whole = is_for_volumes(network, plain[0, -1] > 0.5, spacing)
                if not whole:
                    if self.threshold_rule != "prior":
                        warn_of_rule(self.threshold_rule, name)
                    warn_of_spacing(spacing, network.field_of_view, network.image_size, name)
                    with_brain = (plain[0, -1] > 0.5).flatten(0, 1).any(dim=0).cpu()
                    warn_of_planes(with_brain, affine.cpu(), network.planes, name)
            if whole and spacing is not None:
                volumes = [self._segment_whole(volume, network, spacing, name) for volume in plain]
            else:
                volumes = [self._segment_slices(volume, network, spacing, name) for volume in plain]
            result = torch.stack(volumes) if len(volumes) > 1 else volumes[0][None]
        else:
            result = self._segment(plain, network)
        return convert_to_dst_type(result, inputs, dtype=torch.float32)[0] if isinstance(inputs, MetaTensor) else result

    def _segment_slices(self, volume: Tensor, network: Refinement, spacing: Tensor | None, name: str) -> Tensor:
        """Segment the axial slices of a volume (M + 1, H, W, D) to (K, H, W, D).

        The network sees them in the field of view that it was trained with, around the largest part of the brain.
        """
        padding = [0, 0, 0, 0]
        if spacing is not None and bool((network.field_of_view > 0).all()):
            brain = largest_part(volume[-1] > 0.5)
            padding = window(brain.any(dim=2)[None], spacing[:2], network.field_of_view)
            if (lost := part_cut_off(brain, padding)) > 0:
                logger.warning(
                    f"{name}: the window of the network leaves out {lost:.1%} of the brain, where nothing is marked: "
                    f"it shows {' x '.join(f'{mm:.0f}' for mm in network.field_of_view.tolist())} mm, as in training."
                )
        shown = with_room(volume, padding)
        slices = shown.flatten(0, 2).t().contiguous().view(-1, *shown.shape[:3])  # a matrix is turned fastest
        found = self._segment(slices, network)
        found = found.flatten(1).t().contiguous().view(*found.shape[1:], len(found))
        return F.pad(found, [0, 0, *(-number for number in padding)])

    def _segment_whole(self, volume: Tensor, network: Refinement, spacing: Tensor, name: str) -> Tensor:
        """Find the lesions of a whole volume (M + 1, X, Y, Z) in all its planes at once, (K, X, Y, Z)."""
        lesions: Any = network.lesions
        options = self.options["threshold_scale"], self.options["batch_size"], self.threshold_rule
        try:
            found = segment_volume(lesions, volume[:-1], volume[-1:] > 0.5, spacing.tolist(), *options)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
        mask = found.mask.float()
        channels = {
            "mask": mask if self.drop_small is None else torch.as_tensor(self.drop_small(mask)),
            "anomaly_map": found.probability,
            "reconstruction": found.reconstruction,
            "iterations": torch.ones_like(mask),
            "threshold": torch.full_like(mask, network.map_threshold(self.options["threshold_scale"], by_volume=True)),
        }
        return torch.cat([channels[name] for name in self.outputs])

    def _segment(self, slices: Tensor, network: Refinement) -> Tensor:
        with_brain = (slices[:, -1] > 0.5).flatten(1).any(dim=1).nonzero()[:, 0]
        channels = sum(network.modalities if name == "reconstruction" else 1 for name in self.outputs)
        result = slices.new_zeros(len(slices), channels, *slices.shape[2:])
        group = 4 * self.options["batch_size"]  # slices that stop early make room for others of their group
        with tqdm(total=len(with_brain), unit="slice", disable=not self.progress, leave=False) as bar:
            for part in with_brain.split(group):
                result[part] = self._segment_group(slices[part], network)
                bar.update(len(part))
        return result

    def _segment_group(self, slices: Tensor, network: Refinement) -> Tensor:
        fit_threads()
        size, working_size = slices.shape[-2:], (network.image_size, network.image_size)
        brain_mask = slices[:, -1:] > 0.5
        small = F.interpolate(slices[:, :-1], working_size, mode="bilinear")
        small_brain = F.interpolate(slices[:, -1:], working_size, mode="nearest-exact") > 0.5
        mask, anomaly_map, reconstruction, passes = network.refine(small, small_brain, **self.options)
        if self.drop_small is not None:
            mask = torch.stack([torch.as_tensor(self.drop_small(plane)) for plane in mask.float()]) > 0
        enlarge = {
            "mask": lambda: F.interpolate(mask.float(), size, mode="nearest-exact") * brain_mask,
            "anomaly_map": lambda: F.interpolate(anomaly_map, size, mode="bilinear") * brain_mask,
            "reconstruction": lambda: F.interpolate(reconstruction, size, mode="bilinear"),
            "iterations": lambda: passes[:, None, None, None].expand(-1, 1, *size).float(),
            "threshold": lambda: torch.full_like(
                brain_mask, network.map_threshold(self.options["threshold_scale"]), dtype=torch.float32
            ),
        }
        return torch.cat([enlarge[name]() for name in self.outputs], dim=1)
