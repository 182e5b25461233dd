"""The threshold of the refinement, measured on healthy slices, and the file that carries it with the weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from torch import Tensor

from ..common.model_file import keep_lesions, save_model, take_weights
from ..common.outputs import check_output, check_writable, file_digest, locked
from ..common.share import by_the_first
from ..data.slices import common_field_of_view, covered_planes
from ..method.default import ProbabilisticIterMask
from ..method.published import IterMask
from ..method.refinement import Refinement, pass_noise
from .checkpoint import TrainingCheckpoint, check_not_shipped

logger = logging.getLogger(__name__)
LONGEST_TAIL = 1.25  # times that of an exponential distribution
UNEXPLAINED_ERROR = 9.0  # largest squared error of gray in the middle, the brain being scaled to [-3, 3]


def exceeded_by(values: Tensor, fraction: float) -> float:
    """The value that this fraction of all values exceeds.

    Args:
        values: Any number of values, flattened.
        fraction: In (0, 1).

    Returns:
        One of the values: the quantile 1 - ``fraction`` by rank, rounded down.

    Raises:
        ValueError: When there is no value, or ``fraction`` is outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`fraction` must be in (0, 1), got {fraction}; did you pass a percentage?")
    if values.numel() == 0:
        raise ValueError("No healthy pixel to calibrate `threshold` on: check the validation slices.")
    rank = int((1 - fraction) * (values.numel() - 1) + 1e-9)
    return float(values.flatten().kthvalue(rank + 1).values)


@torch.no_grad()
def hidden_errors(
    model: IterMask, image: Tensor, brain_mask: Tensor, spatial_mask: Tensor, noise: Tensor | None = None
) -> Tensor:
    """Errors of the masked network at the hidden pixels of slices.

    Args:
        model: Trained networks.
        image: Slices (N, M, H, W).
        brain_mask: Brain pixels (N, 1, H, W), bool.
        spatial_mask: Pixels to hide (N, 1, H, W), bool; those outside the brain are not hidden.
        noise: What fills them, (1 or N, M, H, W); default: the noise of the refinement's first pass.

    Returns:
        One error for each hidden pixel.
    """
    hidden = spatial_mask & brain_mask
    noise = pass_noise(image, 0) if noise is None else noise
    return model.masked_pass(image, hidden, brain_mask, noise)[0][hidden]


def calibrate(
    model: IterMask,
    batches: Iterable[dict[str, Tensor]],
    spatial_masks: Callable[[Tensor, torch.Generator], Tensor],
    exceed_fraction: float = 0.2,
    seed: int = 0,
) -> float:
    """Set a model's threshold to the error that a fraction of hidden healthy pixels exceed (Liang et al. 2024, 2.3).

    Args:
        model: Trained networks; its ``threshold`` is set.
        batches: Healthy slices under ``image`` and ``brain_mask``, never used for training.
        spatial_masks: Draws what is hidden, as in training: a function of `masks`.
        exceed_fraction: Part of the hidden healthy pixels above the threshold, in (0, 1); the published value is 0.2.
        seed: Seed of the masks.

    Returns:
        The threshold.
    """
    model.eval()
    device = model.threshold.device
    generator = torch.Generator(device).manual_seed(seed)
    errors = []
    for batch in batches:
        image, brain_mask = batch["image"].to(device), batch["brain_mask"].to(device) > 0
        errors.append(hidden_errors(model, image, brain_mask, spatial_masks(brain_mask, generator)).cpu())
    threshold = exceeded_by(torch.cat(errors) if errors else torch.empty(0), exceed_fraction)
    model.threshold.fill_(threshold)
    return threshold


@torch.no_grad()
def calibrate_scores(
    model: ProbabilisticIterMask,
    batches: Iterable[dict[str, Tensor]],
    first_fraction: float = 0.1,
    exceed_fraction: float = 0.02,
    certain_fraction: float = 0.005,
    seed: int = 0,
) -> float:
    """Set the deviation and thresholds of a `ProbabilisticIterMask` from what healthy slices score.

    Args:
        model: A trained network; its buffers are set.
        batches: Healthy slices under ``image`` and ``brain_mask``, never used for training.
        first_fraction: Part of the healthy brain, in (0, 1), that the first mask hides.
        exceed_fraction: Part of the healthy brain above the lower threshold of the anomaly map.
        certain_fraction: Part of the healthy brain above its upper threshold, which an area must reach somewhere.
        seed: Seed of the noise that fills hidden pixels.

    Returns:
        The lower threshold.

    Raises:
        ValueError: When the fractions are out of order.
    """
    if not certain_fraction <= exceed_fraction <= first_fraction:
        raise ValueError(
            "Expected certain_fraction <= exceed_fraction <= first_fraction, got "
            f"{certain_fraction}, {exceed_fraction}, {first_fraction}."
        )
    model.eval()
    device = model.threshold.device
    slices = [(batch["image"].to(device), batch["brain_mask"].to(device) > 0) for batch in batches]
    model.deviation.fill_(1)
    first = [model.first_pass(model.prepare(image, brain)[0], brain)[0][brain] for image, brain in slices]
    scores = torch.cat(first) if first else torch.empty(0)
    model.deviation.fill_(scores.std() if scores.any() else 1)
    model.first_threshold.fill_(exceeded_by(scores.cpu() / float(model.deviation), first_fraction))
    model.threshold.zero_(), model.certain_threshold.zero_()
    final = torch.cat([model.refine(image, brain, seed=seed)[1][brain].cpu() for image, brain in slices])
    model.threshold.fill_(exceeded_by(final, exceed_fraction))
    model.certain_threshold.fill_(exceeded_by(final, certain_fraction))
    warn_of_heavy_tail(final, float(model.threshold), float(model.certain_threshold), exceed_fraction, certain_fraction)
    return float(model.threshold)


def warn_of_heavy_tail(scores: Tensor, low: float, high: float, low_fraction: float, high_fraction: float) -> None:
    """Log when the highest scores of healthy slices lie apart from the rest, as those of lesions do.

    Args:
        scores: All scores, flattened.
        low: What ``low_fraction`` of them exceed.
        high: What ``high_fraction`` of them exceed.
        low_fraction: In (0, 0.5).
        high_fraction: In (0, ``low_fraction``].
    """
    middle = float(scores.flatten().median())
    exponential = math.log(0.5 / high_fraction) / math.log(0.5 / low_fraction)  # of a Laplace distribution
    if high - middle > LONGEST_TAIL * exponential * (low - middle):
        logger.warning(
            f"The validation slices score above {low:.3g} in {low_fraction:.1%} of the brain and above {high:.3g} in "
            f"{high_fraction:.1%}: the highest scores lie apart from the rest, as those of lesions do. Look at the "
            "validation slices, leave out those that are not healthy, and run `calibrate`."
        )


def check_thresholds(model: Refinement) -> None:
    """Refuse thresholds that no trained model has on healthy slices, and warn of unlikely ones.

    Raises:
        RuntimeError: When one is not above 0, or the upper below the lower.
    """
    values = {name: float(value) for name, value in model.named_buffers() if name in (*model.thresholds, "deviation")}
    shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    possible = all(math.isfinite(value) and value > 0 for value in values.values())
    if not possible or values.get("certain_threshold", values["threshold"]) < values["threshold"]:
        raise RuntimeError(
            f"The thresholds that the validation slices give are impossible ({shown}): expected all above 0, and the "
            "upper one not below the lower; check that the validation slices hold brain as preprocess.json makes it "
            "and that the training's loss fell; the model file is as it was."
        )
    unexplained = values["deviation"] if "deviation" in values else values["threshold"] / UNEXPLAINED_ERROR
    if unexplained > 1:
        logger.warning(
            f"The model explains the validation slices badly ({shown}): are they healthy, of the same modality and "
            "scaled as those it was trained on? If so, train longer; do not trust its masks."
        )


@by_the_first
def recalibrate(
    model: Refinement,
    model_file: str,
    calibration: Callable[..., float],
    batches: Iterable[dict[str, Tensor]],
    output_file: str | None = None,
) -> float:
    """Measure the threshold of a model file anew, for example on healthy slices of another scanner.

    Args:
        model: As the config describes it; the file must agree. Gets the file's weights and the new threshold.
        model_file: The weights.
        calibration: `calibrate` or `calibrate_scores` with its options.
        batches: Healthy slices.
        output_file: Where the weights with the new threshold go; default: ``model_file``.

    Returns:
        The new threshold.
    """
    place = output_file or model_file
    check_not_shipped(place)
    check_writable(Path(place).absolute().parent)
    with locked(place):
        replaces = file_digest(place) if Path(place).is_file() and place == model_file else None
        check_output(place, replaces=replaces)
        model = take_weights(model, model_file)
        before = float(model.threshold)
        threshold = calibration(model, batches)
        check_thresholds(model)
        save_model(model, place, replaces=replaces)
    print(f"Threshold {before:.6g} -> {threshold:.6g}, written to {place}")
    return threshold


def finish_training(
    model: IterMask,
    checkpoint: TrainingCheckpoint,
    trained: Sequence[str],
    model_file: str,
    calibration: Callable[..., float],
    batches: Iterable[dict[str, Tensor]],
    slices: Sequence[Mapping[str, Any]] = (),
    anew: bool = False,
) -> None:
    """Take the best averaged weights, calibrate, and write the model file.

    Where only one of the two networks was trained, the other comes from ``model_file``; as long as there is none,
    the model has no threshold and cannot be used. Of several processes the first does all this.

    Args:
        model: The networks that were trained.
        checkpoint: Holds the best weights.
        trained: Which networks were trained.
        model_file: Where the model goes.
        calibration: `calibrate` or `calibrate_scores` with its options.
        batches: Healthy slices for it.
        slices: Those of the training, as `read_slices` lists them; their size and levels are kept in the model.
        anew: As in `check_training`.

    Raises:
        SystemExit: When the training was interrupted.
    """
    stop_interrupted(checkpoint)
    if idist.get_rank() > 0:
        return
    if checkpoint.is_finished(model_file):
        print(f"{model_file} is this training's already; run `calibrate` for other thresholds.")
        return
    complete = set(trained) == set(model.networks)
    replaces = file_digest(model_file) if Path(model_file).is_file() and (anew or not complete) else None
    if not complete and Path(model_file).exists():
        take_weights(model, model_file)
        complete = True
    model.load_state_dict(checkpoint.best_weights, strict=False)
    model.field_of_view.copy_(torch.tensor(common_field_of_view(slices)))
    model.planes.copy_(torch.tensor(covered_planes(slices)))
    if complete:
        threshold = calibration(model, batches)
        check_thresholds(model)
        print(f"Best validation error {checkpoint.best_metric:.6g}, threshold {threshold:.6g}")
    else:
        other = next(name for name in model.networks if name not in trained)
        model.threshold.fill_(float("nan"))
        print(f"Only {trained[0]} is trained: train {other} with the same `model_file` to get a threshold.")
    save_trained(keep_lesions(model, model_file), checkpoint, model_file, replaces)


def save_trained(
    model: Refinement, checkpoint: TrainingCheckpoint, model_file: str, replaces: str | None = None
) -> None:
    """Write the model file, note beside the checkpoint that it is this training's, and say where it is.

    Args:
        model: Trained.
        checkpoint: Of the training.
        model_file: Where the model goes.
        replaces: Digest of another's model file that it replaces, as the user asked for.
    """
    save_model(model, model_file, checkpoint.path.absolute().parent, replaces)
    print(f"Model: {model_file}")


def stop_interrupted(checkpoint: TrainingCheckpoint) -> None:
    """End the program where a signal ended the training.

    Raises:
        SystemExit: Saying how to go on.
    """
    if checkpoint.interrupted is not None:
        message = (
            f"{checkpoint.interrupted.name}: training stopped, saved {checkpoint.path}; "
            "run the same command with --resume True to go on."
        )
        raise SystemExit(message if idist.get_rank() == 0 else 1)


def finish_lesions(model: ProbabilisticIterMask, checkpoint: TrainingCheckpoint, model_file: str) -> None:
    """Write a model with the last averaged weights of its network for whole volumes; all else is as it was.

    Not the weights of the lowest validation error: while the learning rate is high, this error favors weights that
    mark much, and healthy volumes with it.

    Args:
        model: The model in training.
        checkpoint: Holds the averaged weights.
        model_file: Where the model goes.

    Raises:
        SystemExit: When the training was interrupted.
    """
    stop_interrupted(checkpoint)
    if idist.get_rank() > 0:
        return
    model.load_state_dict(checkpoint.ema.module.state_dict(), strict=False)
    replaces = file_digest(model_file) if Path(model_file).is_file() else None  # from which it was made
    save_trained(model, checkpoint, model_file, replaces)
