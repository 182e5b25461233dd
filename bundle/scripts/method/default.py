"""The default method: IterMask's refinement with networks that also say how sure they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn

from .published import IterMask, hide
from .scores import gaussian_smooth, hysteresis

BACKGROUND = -2.0
NOISE_DEVIATION = 0.7
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


def alike(mask: Tensor, overlap: float) -> Tensor:
    """For each mask the one that can stand for it best, of a choice of masks that stand for themselves.

    A mask is chosen when no earlier chosen one overlaps enough.

    Args:
        mask: Masks (N, 1, H, W), bool.
        overlap: Least intersection over union, in (0, 1); 1 and more: every mask stands for itself.

    Returns:
        Numbers of the masks (N,).
    """
    chosen = torch.arange(len(mask), device=mask.device)
    if overlap >= 1:
        return chosen
    flat = mask.flatten(1).float()
    both, size = flat @ flat.t(), flat.sum(dim=1)
    found = both / (size[:, None] + size[None, :] - both).clamp(min=1)
    free = torch.ones_like(chosen, dtype=torch.bool)
    stands = torch.zeros_like(free)
    for index in range(len(mask)):
        if bool(free[index]):
            stands[index] = True
            free = free & (found[index] < overlap)
    found = found + 2 * torch.eye(len(mask), device=mask.device)  # one that is chosen stands for itself
    return (found * stands).argmax(dim=1)


class ProbabilisticIterMask(IterMask):
    """IterMask with one network for both kinds of hiding, a predicted uncertainty and smoothed, signed scores.

    The network sees the slice with its hidden pixels filled, and which they are; it predicts mean and log-variance of
    the healthy slice. In training hidden pixels lose their low frequencies (image plus coarse noise) or everything
    (noise); here the first iteration hides the whole brain both ways, and the next ones hide what is suspicious.

    Args:
        network: Makes a 2-D network from ``in_channels`` and ``out_channels``.
        modalities: Number M of MRI modalities that are reconstructed together.
        sigma: Smoothing of the scores inside the brain, or the hidden area, in pixels at the network's image size.
        sign: ``"bright"`` counts what is brighter than expected, ``"both"`` also what is darker, and textures.
        mirror_weight: Part of the smoothed score of the mirrored pixel (left and right swapped) that is taken off:
            what is unusual on both sides is rarely a lesion. 0 leaves it out.
        score_weights: Weights of the three scores in the anomaly map: whole brain hidden with the slice itself as
            filling, with noise, and the last pass. A pass of weight 0 is not run: (1, 0, 0) is one pass.
        predict_variance: Whether the network has channels for the log-variance; without, residuals are not divided.
        robust_scaling: Standardize every slice by median and deviation of its brain, see `standardize`.
        threshold: Score above which a pixel may be anomalous. NaN until it has been calibrated.

    Raises:
        ValueError: When ``sign`` is neither, or the weights are not three of which the first is above 0.
    """

    def __init__(
        self,
        network: Callable[..., nn.Module],
        modalities: int = 1,
        sigma: float = 2.0,
        sign: str = "bright",
        mirror_weight: float = 0.5,
        score_weights: Sequence[float] = (1.0, 1.0, 1.0),
        predict_variance: bool = True,
        robust_scaling: bool = True,
        threshold: float = float("nan"),
    ):
        nn.Module.__init__(self)
        if sign not in ("bright", "both"):
            raise ValueError(f"`sign` must be bright or both, got {sign!r}.")
        if len(score_weights) != 3 or min(score_weights) < 0 or score_weights[0] <= 0:
            raise ValueError(
                f"`score_weights` must be three numbers of which the first is above 0, got {list(score_weights)}."
            )
        self.modalities = modalities
        self.sigma = float(sigma)
        self.both_signs = sign == "both"
        self.mirror_weight = float(mirror_weight)
        clear, blind, last = (float(weight) / sum(score_weights) for weight in score_weights)
        self.score_weights = (clear, blind, last)
        self.predict_variance = predict_variance
        self.robust_scaling = robust_scaling
        self.background, self.noise_deviation = BACKGROUND, NOISE_DEVIATION
        self.least_log_variance, self.largest_log_variance = LEAST_LOG_VARIANCE, LARGEST_LOG_VARIANCE
        self.masked = network(in_channels=modalities + 1, out_channels=(1 + predict_variance) * modalities)
        self.register_buffer("threshold", torch.tensor(threshold, dtype=torch.float32))
        self.register_buffer("field_of_view", torch.zeros(2))
        self.register_buffer("planes", torch.tensor([math.inf, -math.inf]))
        self.register_buffer("certain_threshold", torch.tensor(threshold, dtype=torch.float32))
        self.register_buffer("first_threshold", torch.tensor(threshold, dtype=torch.float32))
        self.register_buffer("deviations", torch.ones(2))

    def prepare(self, image: Tensor, brain_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The slices as the network sees them, see `standardize`, and what undoes it in a reconstruction."""
        standard, median, deviation = standardize(image, brain_mask, self.background, self.robust_scaling)
        return standard, 3 * deviation, median

    def predict(self, image: Tensor, spatial_mask: Tensor, brain_mask: Tensor, filling: Tensor) -> Tensor:
        """Fill the hidden pixels and predict mean and log-variance, (N, 2 M, H, W), or the mean alone."""
        filling = torch.where(brain_mask, filling, torch.full_like(image, self.background))
        prediction = self.masked(torch.cat([hide(image, spatial_mask, filling), spatial_mask.to(image.dtype)], dim=1))
        return prediction.float()

    def residual(self, image: Tensor, prediction: Tensor) -> Tensor:
        """What prepared slices have beyond the prediction, in its deviations; mean over modalities, (N, 1, H, W)."""
        residual = image - prediction[:, : self.modalities]
        if self.predict_variance:
            log_variance = prediction[:, self.modalities :].clamp(self.least_log_variance, self.largest_log_variance)
            residual = residual * torch.exp(-0.5 * log_variance)
        if self.both_signs:
            residual = residual.abs()
        return residual.mean(dim=1, keepdim=True)

    def context(
        self, image: Tensor, brain_mask: Tensor, noise: Tensor, shared_overlap: float, batch_size: int
    ) -> tuple[Tensor, Tensor]:
        """What the network expects of brains that are noise: it depends on the shape of the brain alone.

        Returns:
            Prediction (N, 2 M, H, W), of no channels where its score has no weight, and the network passes (N,).
        """
        passes = torch.zeros(len(image), dtype=torch.int64, device=image.device)
        if self.score_weights[1] == 0:
            return image[:, :0], passes
        chosen = alike(brain_mask, shared_overlap)
        own = (chosen == torch.arange(len(image), device=image.device)).nonzero()[:, 0]
        passes[own] = 1
        filling = self.noise_deviation * noise
        parts = [self.predict(image[k], brain_mask[k], brain_mask[k], filling) for k in own.split(batch_size)]
        row = torch.zeros_like(chosen)
        row[own] = torch.arange(len(own), device=image.device)
        prediction = torch.cat(parts)[row[chosen]]
        if len(own) < len(image):  # where a shared brain ends too early the slice itself is expected
            missing = brain_mask & ~brain_mask[chosen]
            prediction[:, : self.modalities] = torch.where(missing, image, prediction[:, : self.modalities])
        return prediction, passes

    def raw_first_scores(self, image: Tensor, brain_mask: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hide the whole brain: its scores with the slice itself as filling, and with noise; the reconstruction."""
        prediction = self.predict(image, brain_mask, brain_mask, image)
        residuals = [self.residual(image, prediction)]
        if context.shape[1] > 0:
            residuals.append(self.residual(image, context))
        scores = gaussian_smooth(torch.cat(residuals, dim=1), brain_mask, self.sigma, 0.05)
        blind = scores[:, 1:] if context.shape[1] > 0 else torch.zeros_like(scores)
        return scores[:, :1], blind, prediction[:, : self.modalities]

    def first_pass(self, image: Tensor, brain_mask: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of both whole-brain scores, each in healthy deviations, and the reconstruction."""
        clear, blind, reconstruction = self.raw_first_scores(image, brain_mask, context)
        return self.first_score(clear, blind), reconstruction

    def first_score(self, clear: Tensor, blind: Tensor) -> Tensor:
        """Weighted mean of the two whole-brain scores, each in healthy deviations."""
        weights = self.score_weights
        together = weights[0] * clear / self.deviations[0] + weights[1] * blind / self.deviations[1]
        return together / (weights[0] + weights[1])

    def first_mask(self, score: Tensor, brain_mask: Tensor, threshold_scale: float) -> Tensor:
        """Hide what scores above the tenth of healthy brain that scores highest; nothing if no pass would follow."""
        if self.score_weights[2] == 0:
            return torch.zeros_like(brain_mask)
        return brain_mask & (score > self.first_threshold * threshold_scale)

    def masked_pass(
        self, image: Tensor, spatial_mask: Tensor, brain_mask: Tensor, context: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score the hidden pixels alone, now that the network can trust the others."""
        prediction = self.predict(image, spatial_mask, brain_mask, image)
        score = gaussian_smooth(self.residual(image, prediction), spatial_mask, self.sigma, 0.05)
        return score / self.deviations[0], prediction[:, : self.modalities]

    def refining_threshold(self) -> Tensor:
        """The score above which a hidden pixel stays hidden."""
        return self.first_threshold

    def decide(
        self, spatial_mask: Tensor, first_score: Tensor, last_score: Tensor, brain_mask: Tensor, threshold_scale: float
    ) -> tuple[Tensor, Tensor]:
        """Average the three scores, take off the mirrored ones, and keep areas that hold a certain pixel."""
        combined = (1 - self.score_weights[2]) * first_score + self.score_weights[2] * last_score
        if self.mirror_weight > 0:
            mirrored = gaussian_smooth(combined.flip(2), brain_mask.flip(2), 2.0)
            combined = combined - self.mirror_weight * mirrored.clamp(min=0)
        anomaly_map = combined.clamp(min=0) * brain_mask
        mask = hysteresis(
            anomaly_map, float(self.threshold) * threshold_scale, float(self.certain_threshold) * threshold_scale
        )
        return mask, anomaly_map
