"""Transforms of scans that MONAI does not have: the brain mask and the scaling of its intensities."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection, PathLike
from monai.data import MetaTensor, NibabelReader, NumpyReader
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor, ensure_tuple, ensure_tuple_rep
from torch import Tensor

from ..common.checks import check_settings
from ..method.volume import PIXEL_SIZE
from .brain import brain_mask_of, lesion_of
from .nifti import content_size, load_volume, open_content
from .quality import check_labels, check_scan
from .stripping import brain_mask_or_strip

logger = logging.getLogger(__name__)

LOWEST, HIGHEST = -3.0, 3.0
LARGEST_SCALED = 1e9  # what the arithmetic of the method bears; a brain's own voxels are near -3 to 3
MOST_TRAILING = 1 << 20  # bytes behind the voxels of a file


def check_fractions(lower_fraction: float, upper_fraction: float) -> None:
    """Refuse fractions that are percentages or out of order.

    Raises:
        ValueError: When not 0 <= ``lower_fraction`` < ``upper_fraction`` <= 1.
    """
    for name, value in {"lower_fraction": lower_fraction, "upper_fraction": upper_fraction}.items():
        if value is None:
            raise ValueError(f"`{name}` must be in [0, 1], got None.")
        check_settings(**{name: value})
    if lower_fraction >= upper_fraction:
        raise ValueError(
            f"`lower_fraction` must be below `upper_fraction`, got {lower_fraction} and {upper_fraction}: swap them?"
        )


def quantiles(values: np.ndarray, fractions: Sequence[float]) -> list[float]:
    """Some quantiles of values (n,), as `numpy.quantile` finds them in float64, bit for bit, but without a copy to it.

    Args:
        values: At least one.
        fractions: In [0, 1].
    """
    places = [fraction * (len(values) - 1) for fraction in fractions]
    around = [(math.floor(place), min(math.floor(place) + 1, len(values) - 1)) for place in places]
    ordered = np.partition(values, sorted({index for pair in around for index in pair}))
    found = []
    for place, pair in zip(places, around, strict=True):
        low, high = (float(ordered[index]) for index in pair)
        part = place - pair[0]
        found.append(high - (high - low) * (1 - part) if part >= 0.5 else low + (high - low) * part)
    return found


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
        ValueError: When a fraction is wrong, or the brain has one intensity only.
    """
    check_fractions(lower_fraction, upper_fraction)
    inside = brain_mask[0].cpu().numpy()
    scaled = np.full(image.shape, LOWEST, dtype=np.float32)
    for channel, modality in enumerate(image.cpu().numpy()):  # NumPy takes and puts masked voxels 5 times faster
        voxels = modality[inside]
        lower, upper = quantiles(voxels, [lower_fraction, upper_fraction])
        if lower_over_volume:
            lower = quantiles(modality.ravel(), [lower_fraction])[0]
        if not upper > lower:
            raise ValueError(
                f"has a brain of constant intensity in channel {channel} (quantiles {lower:g} and {upper:g}): exclude "
                "the case, or check its modality."
            )
        brain = voxels.astype(np.float64)
        brain -= lower
        brain *= (HIGHEST - LOWEST) / (upper - lower)
        brain += LOWEST
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


def last_axis_first(voxels: np.ndarray) -> np.ndarray:
    """Bring voxels (H, W, ...) from the order of a file, whose first axis runs fastest, to that of PyTorch.

    Plane by plane both orders stay within the processor's caches; NumPy, which MONAI would ask, takes five times as
    long.
    """
    if voxels.ndim < 2 or voxels.flags.c_contiguous:
        return voxels
    ordered = np.empty(voxels.shape, voxels.dtype)
    for row in range(voxels.shape[1]):
        ordered[:, row] = voxels[:, row]
    return ordered


def _with_content(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Read all that a file holds, so that gzip compares its checksum, at the end, which nibabel never reaches.

    The affine too is that of the file: where qform, sform and voxel size disagree, MONAI has changed it.
    """
    path = image.get_filename()
    if path is None:  # read whole already
        return image
    try:
        with open_content(str(path)) as file:
            content = file.read(content_size(image))
            trailing = len(file.read(MOST_TRAILING))
        whole = image.from_bytes(content)
        voxels = last_axis_first(np.asanyarray(whole.dataobj))
    except Exception as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again, or exclude the case.") from None
    if trailing == MOST_TRAILING:
        raise ValueError(f"{path} holds far more than the voxels that its header announces: export it again.")
    return type(image)(voxels, whole.affine, image.header)


def _as_nifti(image: nib.spatialimages.SpatialImage) -> nib.Nifti1Image:
    return image if isinstance(image, nib.Nifti1Image) else nib.Nifti1Image(image.dataobj, image.affine, image.header)


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
        images = [nib.squeeze_image(_as_nifti(_with_content(image))) for image in ensure_tuple(img)]
        return super().get_data([type(image)(image.dataobj, images[0].affine, image.header) for image in images])


class SliceReader(NumpyReader):
    """Reads a slice that preprocessing wrote, and says what is wrong with it."""

    def read(self, data: PathLike | Sequence[PathLike], **kwargs: object) -> list[str]:
        """Give the files' names: what fails here makes MONAI try another reader, so `get_data` opens them."""
        return list(map(str, ensure_tuple(data)))

    def get_data(self, img: Sequence[str]) -> tuple[np.ndarray, dict]:
        """Read the arrays (C, H, W); never unpickles.

        Raises:
            ValueError: When a file is damaged, or holds what is no finite number.
        """
        planes = []
        for path in img:
            try:
                planes.append(np.load(path, allow_pickle=False))
            except Exception as error:
                raise ValueError(
                    f"{path} is damaged ({type(error).__name__}): run configs/preprocess.json again."
                ) from None
            if not np.isfinite(planes[-1].astype(np.float32)).all():
                raise ValueError(f"{path} has NaN or infinite pixels: run configs/preprocess.json again.")
        return super().get_data(planes)


def resample_slice(
    image: Tensor, brain_mask: Tensor, spacing: Sequence[float], pixel_size: float, size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Give the brain of a slice other pixels, and put its middle into that of a canvas.

    Args:
        image: Slice (M, H, W).
        brain_mask: (1, H, W), above 0 in the brain.
        spacing: Height and width of its pixels in mm.
        pixel_size: mm of the result's pixels.
        size: Height and width of the result in pixels; what lies beyond is cut off.

    Returns:
        Slice (M, *size), `LOWEST` outside the brain, averaged over what its pixels cover of the brain, and brain mask
        (1, *size), float32.
    """
    brain = (brain_mask > 0).to(torch.float32)
    shape = [max(1, round(n * mm / pixel_size)) for n, mm in zip(image.shape[1:], spacing, strict=True)]
    both = torch.cat([image * brain, brain])[None]
    both = F.interpolate(both, shape, mode="bilinear", antialias=True)[0]
    inside = both[-1] > 0.5
    result = both.new_full((len(both), *size), LOWEST)
    result[-1] = 0
    if inside.any():
        values = torch.where(inside, both[:-1] / both[-1:].clamp(min=0.5), LOWEST)
        both = torch.cat([values, inside[None].to(values.dtype)])
        spans = [inside.any(dim=1 - axis).nonzero()[:, 0] for axis in (0, 1)]
        starts = [int(span[0] + span[-1] + 1) // 2 - want // 2 for span, want in zip(spans, size, strict=True)]
        source = [slice(max(0, start), max(0, start + want)) for start, want in zip(starts, size, strict=True)]
        cut = both[:, source[0], source[1]]
        target = [slice(max(0, -start), max(0, -start) + n) for start, n in zip(starts, cut.shape[1:], strict=True)]
        result[:, target[0], target[1]] = cut
    return result[:-1], result[-1:]


class ResampleSliced(MapTransform):
    """Give slices pixels of one size and put them on canvases of one size, see `resample_slice`.

    Args:
        keys: Slices (M, H, W).
        size: Height and width in pixels.
        pixel_size: mm.
        mask_key: Their brain mask (1, H, W), above 0 in the brain.
        field_key: Their height and width in mm, as preprocessing notes it.

    Raises:
        ValueError: When a slice does not tell its height and width.
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

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Give a copy of ``data`` with the slices and their brain mask."""
        result = dict(data)
        if self.field_key not in result:
            raise ValueError(
                f"{_named(result, result[self.mask_key])} does not tell its height and width in mm: run "
                "configs/preprocess.json again."
            )
        brain_mask = convert_to_tensor(result[self.mask_key], dtype=torch.float32, track_meta=False)
        spacing = [mm / n for mm, n in zip(result[self.field_key], brain_mask.shape[1:], strict=True)]
        for key in self.key_iterator(result):
            image = convert_to_tensor(result[key], dtype=torch.float32, track_meta=False)
            result[key], mask = resample_slice(image, brain_mask, spacing, self.pixel_size, self.size)
            result[self.mask_key] = mask
        return result


class StandardizeByScand(MapTransform):
    """Add each slice in robust deviations from the median of its scan's brain, 0 outside the brain.

    Args:
        keys: Slices (M, H, W).
        names: Where they go, one for each key.
        mask_key: Their brain mask (1, H, W), above 0 in the brain.

    Raises:
        ValueError: When a slice does not tell median and deviation of its scan.
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection,
        names: KeysCollection,
        mask_key: str = "brain_mask",
        allow_missing_keys: bool = False,
    ):
        super().__init__(keys, allow_missing_keys)
        self.names = ensure_tuple_rep(names, len(self.keys))
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Give a copy of ``data`` with the standardized slices."""
        result = dict(data)
        if not {"median", "deviation"} <= result.keys():
            raise ValueError(
                f"{_named(result, result[self.mask_key])} does not tell median and deviation of its scan: run "
                "configs/preprocess.json again."
            )
        median, deviation = (torch.tensor(result[key])[:, None, None] for key in ("median", "deviation"))
        for key, name in self.key_iterator(result, self.names):
            result[name] = (result[key] - median) / deviation * (result[self.mask_key] > 0)
        return result


class BrainMaskd(MapTransform):
    """Put the brain mask of a scan under its own key, and what is to be said of both under ``warnings``.

    The case, if it is known, and the warnings go to the scan's meta data too.

    Args:
        keys: The scan (M, H, W[, D]).
        extraction: Where no mask is given: "background" takes what differs from the background for brain, "auto" also
            strips a scan that still has its skull, see `brain_mask_or_strip`.
        modalities: Names of the M channels, which tell what must look dark; empty where they are not known.
        mask_key: Holds a given mask, or gets what `brain_mask_of` finds; bool, with the scan's meta data.

    Raises:
        ValueError: What `brain_mask_of` and `check_scan` find, with the scan's name; or when ``extraction`` is another.
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
        finders = {"auto": brain_mask_or_strip, "background": brain_mask_of}
        if extraction not in finders:
            raise ValueError(f"`brain_extraction` must be auto or background, got {extraction!r}.")
        self.find, self.modalities, self.mask_key = finders[extraction], modalities, mask_key

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
            if isinstance(image, MetaTensor):
                image.meta |= {"warnings": result["warnings"], **({"case": result["case"]} if "case" in result else {})}
            for sentence in result["warnings"]:
                logger.warning(sentence)
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


class ScaleBrainIntensity(Transform):
    """Transform twin of `scale_brain_intensity`."""

    backend = [TransformBackends.TORCH]

    def __init__(self, upper_fraction: float = 0.9, lower_fraction: float = 0.02, lower_over_volume: bool = False):
        check_fractions(lower_fraction, upper_fraction)
        self.upper_fraction, self.lower_fraction = upper_fraction, lower_fraction
        self.lower_over_volume = lower_over_volume

    def __call__(self, img: Tensor, brain_mask: Tensor) -> Tensor:  # type: ignore[override]  # of two arrays
        """Give the scaled scan, (M, H, W[, D]), with the meta data of ``img``."""
        plain = img.as_tensor() if isinstance(img, MetaTensor) else img
        mask = brain_mask.as_tensor() if isinstance(brain_mask, MetaTensor) else brain_mask
        inside = mask if mask.dtype == torch.bool else mask > 0.5
        scaled = scale_brain_intensity(plain, inside, self.upper_fraction, self.lower_fraction, self.lower_over_volume)
        return convert_to_dst_type(scaled, img, dtype=torch.float32)[0]


class ScaleBrainIntensityd(MapTransform):
    """Dictionary twin of `ScaleBrainIntensity`.

    Args:
        keys: Scans (M, H, W[, D]).
        mask_key: Their brain mask (1, H, W[, D]).
        upper_fraction: Quantile of the brain that becomes 3, in [0, 1].
        lower_fraction: Quantile of the brain that becomes -3, in [0, 1].
        lower_over_volume: Take the lower quantile over all voxels, as the published code does.

    Raises:
        ValueError: What `scale_brain_intensity` finds, with the scan's name.
    """

    backend = ScaleBrainIntensity.backend

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
        self.mask_key = mask_key
        self.transform = ScaleBrainIntensity(upper_fraction, lower_fraction, lower_over_volume)

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Give a copy of ``data`` with the scans scaled."""
        result = dict(data)
        for key in self.key_iterator(result):
            try:
                result[key] = self.transform(result[key], result[self.mask_key])
            except ValueError as error:
                raise ValueError(f"{_named(result, result[key])} {error}") from None
        return result
