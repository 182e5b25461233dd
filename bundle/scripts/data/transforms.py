"""Transforms of scans that MONAI does not have: the brain mask and the scaling of its intensities."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection, PathLike
from monai.data import MetaTensor, NibabelReader
from monai.transforms import MapTransform
from monai.utils import TransformBackends, convert_to_dst_type, ensure_tuple
from torch import Tensor

from ..method.volume import PIXEL_SIZE, PLANES, SHORTEST_SIDE, robust_scale
from .brain import brain_mask_of, lesion_of
from .morphology import box_of
from .nifti import load_volume, with_content
from .quality import check_labels, check_scan
from .stripping import brain_mask_or_strip

LOWEST, HIGHEST = -3.0, 3.0
LARGEST_SCALED = 1e9  # what the arithmetic of the method bears; a brain's own voxels are near -3 to 3


def scale_brain_intensity(
    image: Tensor,
    brain_mask: Tensor,
    upper_fraction: float = 0.9,
    lower_fraction: float = 0.02,
    lower_over_volume: bool = False,
) -> Tensor:
    """Map two quantiles of the brain's intensities to -3 and 3, each modality on its own; nothing is clipped.

    Args:
        image: Scan (M, H, W[, D]).
        brain_mask: Brain voxels (1, H, W[, D]), bool.
        upper_fraction: Quantile that becomes 3, in [0, 1].
        lower_fraction: Quantile that becomes -3, in [0, 1].
        lower_over_volume: Take the lower quantile over all voxels, as the published code does: with a background of
            0 it is 0, and the scaling is 6 x / upper quantile - 3.

    Returns:
        Scaled scan (M, H, W[, D]), float32, -3 outside the brain; the same for any positive scale of the input.

    Raises:
        ValueError: When a fraction is not in [0, 1], or the brain has one intensity only.
    """
    inside = brain_mask[0].cpu().numpy()
    scaled = np.full(image.shape, LOWEST, dtype=np.float32)
    for channel, modality in enumerate(image.cpu().numpy()):  # NumPy takes and puts masked voxels 5 times faster
        brain = modality[inside].astype(np.float64)
        lower, upper = np.quantile(brain, [lower_fraction, upper_fraction])
        if lower_over_volume:
            lower = np.quantile(modality.astype(np.float64), lower_fraction)
        if not upper > lower:
            raise ValueError(
                f"has a brain of constant intensity in channel {channel} (quantiles {lower:g} and {upper:g}): exclude "
                "the case, or check its modality."
            )
        brain = (brain - lower) * ((HIGHEST - LOWEST) / (upper - lower)) + LOWEST
        if not -LARGEST_SCALED <= brain.min() <= brain.max() <= LARGEST_SCALED:
            raise ValueError(
                f"has voxels in channel {channel} that lie more than {LARGEST_SCALED:g} times the brain's own range "
                "from it: repair the file, or exclude the case."
            )
        scaled[channel][inside] = brain
    return torch.from_numpy(scaled).to(image.device)


def _named(data: Mapping[Hashable, object], image: Tensor) -> str:
    meta = image.meta if isinstance(image, MetaTensor) else {}
    return str(data.get("case") or meta.get("filename_or_obj") or "the image")


class ScanReader(NibabelReader):
    """Reads the modalities of a scan, one file each and of any format of `load_volume`, on the grid of the first.

    Affines that differ by a rounding error, and 4-D files of one volume beside 3-D ones, which `find_scans` lets
    pass, are no reason to refuse a scan, as MONAI's reader does.
    """

    def read(self, data: PathLike | Sequence[PathLike], **kwargs: object) -> list[nib.spatialimages.SpatialImage]:
        """Open the files."""
        self.filenames = ensure_tuple(data)
        return [load_volume(path) for path in self.filenames]

    def get_data(self, img: nib.Nifti1Image | Sequence[nib.Nifti1Image]) -> tuple[np.ndarray, dict]:
        """Read the voxels of opened files, on the affine of the first.

        Not in ``read``, whose errors make MONAI try another reader.

        Raises:
            ValueError: When the content of a file is damaged.
        """
        images = [nib.squeeze_image(with_content(image)) for image in ensure_tuple(img)]
        return super().get_data([type(image)(image.dataobj, images[0].affine, image.header) for image in images])


class ResampleSliced(MapTransform):
    """Give the brains of slices pixels of one size, and put their middle into that of a canvas.

    Pixels are averaged over what they cover of the brain; the result is float32, and 0 outside the brain.

    Args:
        keys: Slices (M, H, W).
        size: Height and width of the canvas in pixels; what lies beyond is cut off.
        pixel_size: mm.
        mask_key: Their brain mask (1, H, W), above 0 in the brain.
        field_key: Their height and width in mm, as `SlicesOfScand` gives them.
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection,
        size: Sequence[int],
        pixel_size: float = PIXEL_SIZE,
        mask_key: str = "brain_mask",
        field_key: str = "field_of_view",
        allow_missing_keys: bool = False,
    ):
        super().__init__(keys, allow_missing_keys)
        self.pixel_size, self.size = float(pixel_size), tuple(size)
        self.mask_key, self.field_key = mask_key, field_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Give a copy of ``data`` with the slices and their brain mask."""
        result = dict(data)
        brain = (result[self.mask_key] > 0).to(torch.float32)
        shape = [max(1, round(mm / self.pixel_size)) for mm in result[self.field_key]]
        height, width = self.size
        for key in self.key_iterator(result):
            both = torch.cat([result[key] * brain, brain])[None]
            both = F.interpolate(both, shape, mode="bilinear", antialias=True)[0]
            inside = both[-1:] > 0.5
            values = torch.where(inside, both[:-1] / both[-1:].clamp(min=0.5), 0.0)
            both = F.pad(torch.cat([values, inside.to(values.dtype)]), (width, width, height, height))
            for axis, (span, size) in enumerate(zip(box_of(inside[0].cpu().numpy()), self.size, strict=True), start=1):
                both = both.narrow(axis, (span.start + span.stop) // 2 - size // 2 + size, size)
            result[key], result[self.mask_key] = both[:-1].contiguous(), both[-1:].contiguous()
        return result


class StandardizeBraind(MapTransform):
    """Give scans in robust deviations from the median of their brain, 0 outside the brain.

    Args:
        keys: Scans (M, X, Y, Z).
        mask_key: Their brain mask (1, X, Y, Z), bool.

    Raises:
        ValueError: When half of a brain or more has one intensity, with the scan's name.
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, keys: KeysCollection, mask_key: str = "brain_mask", allow_missing_keys: bool = False):
        super().__init__(keys, allow_missing_keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Give a copy of ``data`` with the standardized scans."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            plain, brain = (torch.as_tensor(each).as_subclass(Tensor) for each in (image, result[self.mask_key]))
            try:
                median, deviation = robust_scale(plain.float(), brain[0] > 0)
            except ValueError as error:
                raise ValueError(f"{_named(result, image)} {error}") from None
            standard = (plain.float() - median) / deviation * brain
            result[key] = convert_to_dst_type(standard, image, dtype=torch.float32)[0]
        return result


class SlicesOfScand(MapTransform):
    """Cut a scan into slices: gives a list of dictionaries, one for each slice that is chosen.

    Axial slices are (x, y), coronal ones (x, z) and sagittal ones (z, y). A plane in which the scan shows less than
    `SHORTEST_SIDE` along one of its axes is left out, so that a scan of a few axial slices gives axial slices alone.
    Beside the keys, brain mask and lesion mask, a slice has the scan's ``case`` and ``certain``, its ``plane``,
    ``slice`` (its number), ``position`` (mm along the axis across it) and ``field_of_view`` (height and width in mm).

    Args:
        keys: Volumes (C, X, Y, Z) of one grid in RAS order.
        selection: "healthy" takes slices without lesion, "largest_lesion" of each plane the one slice with the most
            lesion voxels. A scan without lesion mask counts as one without lesion.
        planes: "axial", "coronal", "sagittal".
        slice_range: First slice of a plane and the one after the last; None: all.
        slice_distance: Slices are at least so many millimeters apart; 0: every slice.
        smallest_brain_fraction: Slices of which the brain covers less than this part are left out.
        mask_key: The brain mask (1, X, Y, Z), bool.
        label_key: The lesion mask (1, X, Y, Z), whole numbers, if there is one.

    Raises:
        ValueError: When the range leaves the scan or the lesion mask is none, with the scan's name.
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection,
        selection: str = "healthy",
        planes: Sequence[str] = ("axial",),
        slice_range: Sequence[int] | None = None,
        slice_distance: float = 0.0,
        smallest_brain_fraction: float = 0.02,
        mask_key: str = "brain_mask",
        label_key: str = "label",
        allow_missing_keys: bool = False,
    ):
        super().__init__(keys, allow_missing_keys)
        self.selection, self.planes, self.slice_distance = selection, list(planes), float(slice_distance)
        self.slice_range = None if slice_range is None else [int(k) for k in slice_range]
        self.smallest_brain_fraction = smallest_brain_fraction
        self.mask_key, self.label_key = mask_key, label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """Give the slices, plane by plane in the order of their numbers; plain tensors (C, H, W)."""
        name = _named(data, data[self.first_key(dict(data))])
        affine = np.asarray(data[self.mask_key].affine, dtype=float)
        volumes = {key: torch.as_tensor(data[key]).as_subclass(Tensor) for key in self.key_iterator(dict(data))}
        volumes[self.mask_key] = torch.as_tensor(data[self.mask_key]).as_subclass(Tensor) > 0
        if self.label_key in data:
            volumes[self.label_key] = lesion_of(data[self.label_key], name).to(torch.uint8)
        rest: dict[Hashable, Any] = {key: data[key] for key in ("case", "certain") if key in data}
        return [{**rest, **part} for plane in self.planes for part in self._plane(volumes, affine, plane, name)]

    def _plane(
        self, volumes: Mapping[Hashable, Tensor], affine: np.ndarray, plane: str, name: str
    ) -> list[dict[Hashable, Any]]:
        """The chosen slices of one plane."""
        across, (rows, columns) = PLANES[plane]
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        shape = volumes[self.mask_key].shape[1:]
        field_of_view = [round(float(shape[axis] * spacing[axis]), 3) for axis in (rows, columns)]
        if min(field_of_view) < SHORTEST_SIDE:
            return []
        turned = {key: volume.permute(0, 1 + rows, 1 + columns, 1 + across) for key, volume in volumes.items()}
        where: dict[Hashable, Any] = {"plane": plane, "field_of_view": field_of_view}
        return [
            {key: volume[..., k].contiguous() for key, volume in turned.items()}
            | {**where, "slice": k, "position": float(affine[across, across] * k + affine[across, 3])}
            for k in self._chosen(turned, float(spacing[across]), name)
        ]

    def _chosen(self, volumes: Mapping[Hashable, Tensor], thickness: float, name: str) -> list[int]:
        """The numbers of the chosen slices along the last axis."""
        brain = volumes[self.mask_key].float().mean(dim=(0, 1, 2))
        lesion = volumes.get(self.label_key, torch.zeros(1, 1, 1, len(brain))).sum(dim=(0, 1, 2))
        number = len(brain)
        first, end = self.slice_range or (0, number)
        if end > number:
            raise ValueError(
                f"{name} has {number} slices, so `slice_range` {self.slice_range} leaves it: choose a range within "
                f"[0, {number}], or null for all slices."
            )
        step = max(1, math.ceil(self.slice_distance / thickness - 1e-6))
        slices = [k for k in range(first, end, step) if brain[k] >= self.smallest_brain_fraction]
        if self.selection == "healthy":
            return [k for k in slices if lesion[k] == 0]
        return sorted((k for k in slices if lesion[k] > 0), key=lambda k: -int(lesion[k]))[:1]


class BrainMaskd(MapTransform):
    """Put the brain mask of a scan under its own key, and what is to be said of both under ``warnings``.

    The case, if it is known, goes to the scan's meta data too.

    Args:
        keys: The scan (M, H, W[, D]).
        extraction: Where no mask is given: "background" takes what differs from the background for brain, "auto" also
            strips a scan that still has its skull, see `brain_mask_or_strip`.
        modalities: Names of the M channels, which tell what must look dark; empty where they are not known.
        mask_key: Holds a given mask, or gets what `brain_mask_of` finds; bool, with the scan's meta data.

    Raises:
        ValueError: What `brain_mask_of` and `check_scan` find, with the scan's name.
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection,
        extraction: str = "background",
        modalities: Sequence[str] = (),
        mask_key: str = "brain_mask",
        allow_missing_keys: bool = False,
    ):
        super().__init__(keys, allow_missing_keys)
        self.extraction, self.modalities, self.mask_key = extraction, modalities, mask_key
        self.find = {"auto": brain_mask_or_strip, "background": brain_mask_of}[extraction]

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Any]:
        """Give a copy of ``data`` with the brain mask and the warnings."""
        result: dict[Hashable, Any] = {"warnings": [], **data}
        for key in self.key_iterator(result):
            image, given = result[key], result.get(self.mask_key)
            name = _named(result, image)
            try:
                mask = convert_to_dst_type(self.find(image, given), image, dtype=torch.bool)[0]
                whole = isinstance(image, MetaTensor) and image.ndim == 4
                found = check_scan(image, mask, given, self.modalities) if whole else []
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
            result[self.mask_key] = mask
            result["warnings"] = [*result["warnings"], *(f"{name} {sentence}" for sentence in found)]
            if isinstance(image, MetaTensor) and "case" in result:
                image.meta["case"] = result["case"]
        return result


class LesionLabeld(MapTransform):
    """Keep of a lesion mask the values that count, as 1, and say where there are several and none was chosen.

    Args:
        keys: Lesion masks (1, H, W[, D]), whole numbers from 0.
        values: What counts as lesion; None: all above 0.

    Raises:
        ValueError: When a mask holds other numbers, with the scan's name.
    """

    backend = [TransformBackends.NUMPY]

    def __init__(self, keys: KeysCollection, values: Sequence[int] | None = None, allow_missing_keys: bool = False):
        super().__init__(keys, allow_missing_keys)
        self.values = values

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Any]:
        """Give a copy of ``data`` with the masks and the warnings."""
        result: dict[Hashable, Any] = {"warnings": [], **data}
        for key in self.key_iterator(result):
            label, name = result[key], _named(result, result[key])
            result[key] = convert_to_dst_type(lesion_of(label, name, self.values), label, dtype=torch.uint8)[0]
            if self.values is None and (sentence := check_labels(label)):
                result["warnings"] = [*result["warnings"], f"{name} {sentence}"]
        return result


class ScaleBrainIntensityd(MapTransform):
    """Scale scans by two quantiles of their brain, see `scale_brain_intensity`.

    Args:
        keys: Scans (M, H, W[, D]).
        mask_key: Their brain mask (1, H, W[, D]).
        upper_fraction: Quantile of the brain that becomes 3, in [0, 1].
        lower_fraction: Quantile of the brain that becomes -3, in [0, 1].
        lower_over_volume: Take the lower quantile over all voxels, as the published code does.

    Raises:
        ValueError: When not 0 <= ``lower_fraction`` < ``upper_fraction`` <= 1; in a call, what
            `scale_brain_intensity` finds, with the scan's name.
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection,
        mask_key: str = "brain_mask",
        upper_fraction: float = 0.9,
        lower_fraction: float = 0.02,
        lower_over_volume: bool = False,
        allow_missing_keys: bool = False,
    ):
        super().__init__(keys, allow_missing_keys)
        if not 0 <= lower_fraction < upper_fraction <= 1:
            raise ValueError(
                "`lower_fraction` and `upper_fraction` must be in [0, 1], the lower one first, got "
                f"{lower_fraction} and {upper_fraction}; did you pass percentages?"
            )
        self.mask_key = mask_key
        self.upper_fraction, self.lower_fraction = upper_fraction, lower_fraction
        self.lower_over_volume = lower_over_volume

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Give a copy of ``data`` with the scans scaled."""
        result = dict(data)
        inside = torch.as_tensor(result[self.mask_key]).as_subclass(Tensor) > 0.5
        options = self.upper_fraction, self.lower_fraction, self.lower_over_volume
        for key in self.key_iterator(result):
            image = result[key]
            try:
                scaled = scale_brain_intensity(torch.as_tensor(image).as_subclass(Tensor), inside, *options)
            except ValueError as error:
                raise ValueError(f"{_named(result, image)} {error}") from None
            result[key] = convert_to_dst_type(scaled, image, dtype=torch.float32)[0]
        return result
