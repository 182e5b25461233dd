"""The end of a training: the threshold, measured on healthy slices, and the file that carries it with the weights."""

from __future__ import annotations

import logging
import math
import os
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from torch import Tensor, nn

from ..common.model_file import save_model
from ..common.outputs import check_output, check_writable, file_digest
from ..common.paths import bundle_root
from ..data.dataset import SliceDataset
from ..method.itermask import IterMask, iteration_noise
from ..method.model import Model
from .checkpoint import TrainingCheckpoint

logger = logging.getLogger(__name__)
UNEXPLAINED_ERROR = 9.0  # largest squared error of gray in the middle, the brain being scaled to [-3, 3]


def exceeded_by(values: Tensor, fraction: float) -> float:
    """The value that this fraction of all values exceeds.

    Args:
        values: Any number of values, flattened.
        fraction: In (0, 1).

    Returns:
        One of the values: the quantile 1 - ``fraction`` by rank, rounded down.

    Raises:
        ValueError: When there is no value.
    """
    if values.numel() == 0:
        raise ValueError("No healthy pixel to calibrate `threshold` on: check the validation scans.")
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
        noise: What fills them, (1 or N, M, H, W); default: the noise of a seed of its own.

    Returns:
        One error for each hidden pixel.
    """
    hidden = spatial_mask & brain_mask
    noise = iteration_noise(image, 0) if noise is None else noise
    return model.masked_reconstruction(image, hidden, brain_mask, noise)[0][hidden]


def calibrate(
    model: IterMask,
    batches: Iterable[dict[str, Tensor]],
    spatial_masks: Callable[[Tensor, torch.Generator], Tensor],
    false_positive_rate: float = 0.2,
    seed: int = 0,
) -> float:
    """Set a model's threshold to the error that a fraction of hidden healthy pixels exceed (Liang et al. 2024, 2.3).

    Args:
        model: Trained networks; its ``threshold`` is set.
        batches: Healthy slices under ``image`` and ``brain_mask``, never used for training.
        spatial_masks: Draws what is hidden, as in training: a function of `masks`.
        false_positive_rate: Part of the hidden healthy pixels above the threshold, in (0, 1); the published value is
            0.2.
        seed: Seed of the masks.

    Returns:
        The threshold.

    Raises:
        RuntimeError: When the threshold is not above 0.
    """
    model.eval()
    device = model.threshold.device
    generator = torch.Generator(device).manual_seed(seed)
    errors = []
    for batch in batches:
        image, brain_mask = batch["image"].to(device), batch["brain_mask"].to(device) > 0
        errors.append(hidden_errors(model, image, brain_mask, spatial_masks(brain_mask, generator)).cpu())
    threshold = exceeded_by(torch.cat(errors or [torch.empty(0)]), false_positive_rate)
    if not (math.isfinite(threshold) and threshold > 0):
        raise RuntimeError(
            f"The validation slices give the impossible threshold {threshold:.4g}, expected one above 0: check that "
            "they show brains and that the training's loss fell; the model file is as it was."
        )
    if threshold > UNEXPLAINED_ERROR:
        logger.warning(
            f"The model explains the validation slices badly (threshold {threshold:.4g}): are they healthy, and of the "
            "modality that it was trained on? If so, train longer; do not trust its masks."
        )
    model.threshold.fill_(threshold)
    return threshold


def check_training(model_file: str, checkpoint: TrainingCheckpoint, dataset: SliceDataset) -> None:
    """Refuse outputs of a training that cannot be written or would replace others, before any long work starts.

    Args:
        model_file: Where the model will go.
        checkpoint: Of the training.
        dataset: Whether MONAI Label has listed its scans, whose server trains the same model again and again.

    Raises:
        OSError: When a folder cannot be made or written to, or the model file is read-only.
        ValueError: When one of them is there and is no file of this product, or that of another training.
        RuntimeError: When another run writes in the folder of the checkpoint.
    """
    if idist.get_rank() > 0:
        return
    for path in (checkpoint.path, Path(model_file)):
        check_writable(path.absolute().parent)
    if dataset.listed:
        checkpoint.resume = False
        return
    if checkpoint.path.exists() and not checkpoint.resume:
        raise ValueError(
            f"{checkpoint.path} holds a training already: leave out `resume` to go on with it, or set another "
            "`output_dir`."
        )
    check_output(checkpoint.path, replaces=file_digest(checkpoint.path) if checkpoint.path.is_file() else None)
    if Path(model_file).absolute() == checkpoint.path.absolute():
        raise ValueError(f"`model_file` is {model_file}, where the training writes its checkpoint: set another one.")
    check_output(model_file, checkpoint.path.absolute().parent)


def finish_training(
    model: Model,
    weights: nn.Module,
    checkpoint: TrainingCheckpoint,
    model_file: str,
    dataset: SliceDataset,
    calibration: Callable[..., float] | None = None,
    batches: Iterable[dict[str, Tensor]] = (),
) -> None:
    """Take the trained weights, calibrate where the method asks for it, and write the model file.

    A training that was complete already leaves its model file as it is. Of several processes the first does all this.

    Args:
        model: The model that was trained.
        weights: Its trained networks, averaged over the last iterations where the method does that.
        checkpoint: Knows whether the training was interrupted.
        model_file: Where the model goes. Where MONAI Label has listed the scans, it goes to the weights of the bundle,
            which its server reads.
        dataset: The training slices; an `IterMask` keeps their size and levels.
        calibration: `calibrate` with its options, or None.
        batches: Healthy slices for it.

    Raises:
        SystemExit: When the training was interrupted.
    """
    checkpoint.stop_interrupted()
    place = os.path.join(bundle_root(), "models", "model.pt") if dataset.listed else model_file
    if idist.get_rank() > 0:
        return
    if checkpoint.has_made(place):
        print(f"The training is complete already. Model: {place}")
        return
    model.load_state_dict(weights.state_dict(), strict=False)
    if isinstance(model, IterMask):
        note_slices(model, dataset)
    if calibration is not None:
        print(f"Threshold {calibration(model, batches):.6g}")
    replaces = file_digest(place) if dataset.listed and Path(place).is_file() else None
    save_model(model, place, checkpoint.path.absolute().parent, replaces)
    print(f"Model: {place}")


def note_slices(model: IterMask, dataset: SliceDataset) -> None:
    """Keep in a model the height and width in mm (median) and the levels of the slices that it was trained on."""
    slices: list[dict[str, Any]] = [part for scan in dataset.scans for part in scan]
    sizes = zip(*(part["field_of_view"] for part in slices), strict=True)
    model.field_of_view.copy_(torch.tensor([statistics.median(size) for size in sizes]))
    if all(part["plane"] == "axial" for part in slices):
        positions = [part["position"] for part in slices]
        model.planes.copy_(torch.tensor([min(positions), max(positions)]))


def recalibrate(
    model: Model, model_file: str, output_file: str, calibration: Callable[..., float], batches: Iterable[Any]
) -> None:
    """Measure the threshold of a model anew, for example on healthy scans of another scanner.

    Args:
        model: As `load_model` gives it; gets the new threshold.
        model_file: Where it is from.
        output_file: Where the model with the new threshold goes.
        calibration: `calibrate` with its options.
        batches: Healthy slices, or scans.
    """
    check_writable(Path(output_file).absolute().parent)
    check_output(output_file)
    before = float(model.threshold_values()[0])
    calibration(model, batches)
    threshold = float(model.threshold_values()[0])
    save_model(model, output_file)
    print(f"Threshold {before:.6g} of {model_file} -> {threshold:.6g}, written to {output_file}")
