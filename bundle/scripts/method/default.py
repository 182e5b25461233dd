"""The default method: one network that also says how sure it is, and scores with a sign."""

# No `from __future__ import annotations`: TorchScript cannot read annotations of buffers as text.

from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn

from .former_volume import BACKGROUND, lowest_probability
from .refinement import Refinement
from .scores import gaussian_smooth, hysteresis

LEAST_LOG_VARIANCE, LARGEST_LOG_VARIANCE = -7.0, 3.0


def standardize(
    image: Tensor, brain_mask: Tensor, background: float = BACKGROUND, robust: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Center and scale the brain of each slice robustly, so that a lesion or a scanner changes little.

    Args:
        image: Slices (N, M, H, W) in any linear scale.
        brain_mask: Brain pixels (N, 1, H, W), bool.
        background: Value outside the brain.
        robust: False keeps the scale of the preprocessing, [-3, 3], and takes the median as 0 and the deviation as 1.

    Returns:
        Slices in thirds of a robust standard deviation (1.4826 times the median absolute deviation) from the median,
        clipped to [-2, 2.67]; the median and the deviation, (N, M, 1, 1).
    """
    inside = image.masked_fill(~brain_mask, float("nan"))
    median = inside.flatten(2).nanmedian(dim=2).values[:, :, None, None]
    deviation = 1.4826 * (inside - median).abs().flatten(2).nanmedian(dim=2).values[:, :, None, None]
    median, deviation = median.nan_to_num(0.0), deviation.nan_to_num(1.0).clamp(min=1e-6)
    if not robust:
        median, deviation = torch.zeros_like(median), torch.ones_like(deviation)
    standard = ((image - median) / deviation).clamp(-6.0, 8.0) / 3
    return torch.where(brain_mask, standard, torch.full_like(standard, background)), median, deviation


class StandardizeBraind(MapTransform):
    """Add each slice as the network sees it, see `standardize`, 0 outside the brain, so that it is computed once.

    Args:
        keys: Slices (M, H, W).
        names: Where the standardized slices go, one for each key.
        mask_key: Their brain mask (1, H, W), above 0 in the brain.
        robust_scaling: As in `ProbabilisticIterMask`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        names: KeysCollection,
        mask_key: str = "brain_mask",
        robust_scaling: bool = True,
        allow_missing_keys: bool = False,
    ):
        super().__init__(keys, allow_missing_keys)
        self.names = ensure_tuple_rep(names, len(self.keys))
        self.mask_key = mask_key
        self.robust_scaling = robust_scaling

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Give a copy of ``data`` with the standardized slices."""
        result = dict(data)
        for key, name in self.key_iterator(result, self.names):
            image, brain_mask = result[key][None], result[self.mask_key][None] > 0
            result[name] = standardize(image, brain_mask, 0.0, self.robust_scaling)[0][0]
        return result


class ProbabilisticIterMask(Refinement):
    """The default method: one network for both kinds of hiding, a predicted uncertainty and smoothed, signed scores.

    The network sees the slice with its hidden pixels filled, and which they are; it predicts mean and log-variance of
    the healthy slice. In training hidden pixels lose their low frequencies (image plus coarse noise) or everything
    (noise); here the first iteration hides the whole brain and the next ones what is suspicious, with the slice itself
    as filling, which the network has learned to distrust.

    Args:
        network: Makes a 2-D network from ``in_channels`` and ``out_channels``.
        modalities: Names of the M modalities that are reconstructed together.
        image_size: Height and width in pixels that the network works at.
        scaling: See `Refinement`.
        sigma: Smoothing of the scores inside the brain, or the hidden area, in pixels at ``image_size``.
        sign: ``"bright"`` counts what is brighter than expected, ``"both"`` also what is darker, and textures.
        mirror_weight: Part of the smoothed score of the mirrored pixel (left and right swapped) that is taken off:
            what is unusual on both sides is rarely a lesion. 0 leaves it out.
        last_weight: Weight of the last pass in the anomaly map, in [0, 1), beside the first one's; 0 is one pass.
        predict_variance: Whether the network has channels for the log-variance; without, residuals are not divided.
        robust_scaling: Standardize every slice by median and deviation of its brain, see `standardize`.
        lesions: Whether a second network says in whole volumes where it sees lesions, see `segment_volume`.
        threshold: Score above which a pixel may be anomalous. NaN until it has been calibrated.

    Raises:
        ValueError: When ``sign`` is neither, or ``last_weight`` is outside its range.
    """

    title = "probabilistic IterMask"
    networks = ["masked"]
    fast_passes = 1
    thresholds = ("threshold", "certain_threshold", "first_threshold")
    certain_threshold: Tensor
    first_threshold: Tensor
    deviation: Tensor

    def __init__(
        self,
        network: Callable[..., nn.Module],
        modalities: Sequence[str] = ("flair",),
        image_size: int = 128,
        scaling: Mapping[str, object] | None = None,
        sigma: float = 2.0,
        sign: str = "bright",
        mirror_weight: float = 0.5,
        last_weight: float = 0.5,
        predict_variance: bool = True,
        robust_scaling: bool = True,
        lesions: bool = False,
        threshold: float = float("nan"),
    ):
        super().__init__(modalities, image_size, scaling, threshold)
        if sign not in ("bright", "both"):
            raise ValueError(f"`sign` must be bright or both, got {sign!r}.")
        if not 0 <= last_weight < 1:
            raise ValueError(f"`last_weight` must be in [0, 1), got {last_weight}.")
        self.sigma, self.mirror_weight, self.last_weight = float(sigma), float(mirror_weight), float(last_weight)
        self.both_signs, self.predict_variance, self.robust_scaling = sign == "both", predict_variance, robust_scaling
        self.background = BACKGROUND
        self.least_log_variance, self.largest_log_variance = LEAST_LOG_VARIANCE, LARGEST_LOG_VARIANCE
        channels = (1 + predict_variance) * self.modalities
        self.masked = network(in_channels=self.modalities + 1, out_channels=channels)
        if lesions:
            self.networks = ["masked", "lesions"]
            self.lesions = network(in_channels=self.modalities + 1, out_channels=2 * self.modalities + 1)
        self.register_buffer("deviation", torch.ones(()))
        self.describe(
            sigma=self.sigma,
            sign=sign,
            mirror_weight=self.mirror_weight,
            last_weight=self.last_weight,
            predict_variance=predict_variance,
            robust_scaling=robust_scaling,
            lesions=lesions,
        )

    def prepare(self, image: Tensor, brain_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Standardize the slices, see `standardize`."""
        standard, median, deviation = standardize(image, brain_mask, self.background, self.robust_scaling)
        return standard, 3 * deviation, median

    def reconstruct(self, image: Tensor, spatial_mask: Tensor, brain_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the slices without trust in what is hidden.

        Returns:
            Smoothed residual in the hidden area, in predicted deviations, mean over modalities, (n, 1, H, W); and the
            predicted mean (n, M, H, W).
        """
        prediction = self.masked(torch.cat([image, spatial_mask.to(image.dtype)], dim=1)).float()
        mean = prediction[:, : self.modalities]
        residual = image - mean
        if self.predict_variance:
            log_variance = prediction[:, self.modalities :].clamp(self.least_log_variance, self.largest_log_variance)
            residual = residual * torch.exp(-0.5 * log_variance)
        if self.both_signs:
            residual = residual.abs()
        return gaussian_smooth(residual.mean(dim=1, keepdim=True), spatial_mask, self.sigma, 0.05), mean

    def first_pass(self, image: Tensor, brain_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Hide the whole brain; give its score in healthy deviations, and the reconstruction."""
        score, reconstruction = self.reconstruct(image, brain_mask, brain_mask)
        return score / self.deviation, reconstruction

    def first_mask(self, score: Tensor, brain_mask: Tensor, threshold_scale: float) -> Tensor:
        """Hide what scores above the tenth of healthy brain that scores highest; nothing if no pass would follow."""
        threshold = float(self.first_threshold) * threshold_scale
        return brain_mask & (score > threshold) if self.last_weight > 0 else torch.zeros_like(brain_mask)

    def masked_pass(
        self, image: Tensor, spatial_mask: Tensor, brain_mask: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Hide what is suspicious; give its score in healthy deviations, and the reconstruction."""
        score, reconstruction = self.reconstruct(image, spatial_mask, brain_mask)
        return score / self.deviation, reconstruction

    def refining_threshold(self) -> Tensor:
        """Give the score above which a hidden pixel stays hidden."""
        return self.first_threshold

    def map_threshold(self, threshold_scale: float = 1.0, by_volume: bool = False) -> float:
        """Give the threshold of the anomaly map of slices, or of whole volumes, where it is a probability."""
        return lowest_probability(threshold_scale) if by_volume else float(self.threshold) * threshold_scale

    def threshold_values(self) -> list[Tensor]:
        """Give the buffers that calibration sets."""
        return [self.threshold, self.certain_threshold, self.first_threshold]

    def decide(
        self, spatial_mask: Tensor, first_score: Tensor, last_score: Tensor, brain_mask: Tensor, threshold_scale: float
    ) -> tuple[Tensor, Tensor]:
        """Average both scores, take off the mirrored ones, and keep areas that hold a certain pixel."""
        combined = (1 - self.last_weight) * first_score + self.last_weight * last_score
        if self.mirror_weight > 0:
            mirrored = gaussian_smooth(combined.flip(2), brain_mask.flip(2), 2.0)
            combined = combined - self.mirror_weight * mirrored.clamp(min=0)
        anomaly_map = combined.clamp(min=0) * brain_mask
        mask = hysteresis(
            anomaly_map, float(self.threshold) * threshold_scale, float(self.certain_threshold) * threshold_scale
        )
        return mask, anomaly_map
