"""What training needs beside MONAI and Ignite: the corruption, the order of slices, checkpoints."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.engines import IterationEvents, PrepareBatch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Sampler
from torch.utils.tensorboard import SummaryWriter

from .augmentation import random_affine, random_intensity
from .files import read_tensors, save_tensors
from .itermask import IterMask, hide
from .masks import coarse_noise
from .precision import autocast, check_precision
from .probabilistic import (
    BACKGROUND,
    LARGEST_LOG_VARIANCE,
    LEAST_LOG_VARIANCE,
    NOISE_DEVIATION,
)

logger = logging.getLogger(__name__)

NETWORKS = ("first_iteration", "masked")


def networks_of(model: IterMask) -> list[str]:
    """The names of a model's networks."""
    return [name for name in NETWORKS if hasattr(model, name)]


class Reconstructions(nn.Module):
    """The module that a training step runs: both networks of an `IterMask`, whose parameters it shares.

    Args:
        model: The networks to train.
        trained: Which of ``first_iteration`` and ``masked``; the other one stays as it is.
        precision: Of the forward and backward passes, see `precision.autocast`; weights and loss are float32.

    Raises:
        ValueError: When ``trained`` names no network, or ``precision`` none.
    """

    def __init__(self, model: IterMask, trained: Sequence[str] = NETWORKS, precision: str = "float32"):
        super().__init__()
        check_precision(precision)
        self.precision = precision
        names = networks_of(model)
        if not trained or any(name not in names for name in trained):
            raise ValueError(f"`trained` must list one or both of {', '.join(names)}, got {list(trained)}.")
        for name in trained:
            self.add_module(name, getattr(model, name))

    def forward(self, corrupted_and_high: Tensor) -> Tensor:
        """Run each network on its input, (N, 2 M, H, W) of corrupted and high-frequency image, and join the channels.

        The first-iteration network gets the second half of the channels, the masked network all of them.
        """
        high = corrupted_and_high[:, corrupted_and_high.shape[1] // 2 :]
        inputs = {"first_iteration": high, "masked": corrupted_and_high}
        with autocast(self.precision, corrupted_and_high.device):
            outputs = [network(inputs[name]) for name, network in self.named_children()]
        return torch.cat(outputs, dim=1).float()


class PrepareCorruptedBatch(PrepareBatch):
    """Hide a random part of each slice under noise, on the training device (Liang et al. 2024, section 2.1).

    The networks are asked for the whole slice, so the mean squared error over the channels that come out is the mean
    of both networks' errors. They share no parameter and AdamW scales each parameter by its own gradients, so one
    pass trains both as two trainings would.

    Args:
        spatial_masks: Draws hidden pixels from brain masks (N, 1, H, W) and a generator: a function of `masks`.
        seed: Seed of masks and noise.
        networks: Number of networks that are trained.
    """

    def __init__(self, spatial_masks: Callable[[Tensor, torch.Generator], Tensor], seed: int = 0, networks: int = 2):
        self.spatial_masks = spatial_masks
        self.seed = seed
        self.networks = networks
        self.iteration = 0

    def __call__(
        self, batchdata: dict[str, Tensor], device: torch.device, non_blocking: bool = False, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Give (N, 2 M, H, W) of corrupted and high-frequency image, and the targets (N, M per network, H, W)."""
        image, high, brain_mask = (
            batchdata[key].to(device, non_blocking=non_blocking) for key in ("image", "high_frequency", "brain_mask")
        )
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + self.iteration)
        spatial_mask = self.spatial_masks(brain_mask > 0, generator)
        noise = torch.randn(image.shape, generator=generator, device=device)
        corrupted = hide(image, spatial_mask, noise)
        return torch.cat([corrupted, high], dim=1), image.repeat(1, self.networks, 1, 1)


class PrepareMaskedBatch(PrepareBatch):
    """Hide the low frequencies, or all, of a random area of changed slices: the training of `ProbabilisticIterMask`.

    Args:
        spatial_masks: Draws hidden pixels from brain masks (N, 1, H, W) and a generator: a function of `masks`.
        seed: Seed of all that is drawn.
        noise_range: Amplitude of the coarse noise over the hidden pixels, in robust standard deviations of the brain.
        noise_fraction: Part of the slices, in [0, 1], whose hidden pixels hold noise alone.
        augment: Flip, move and change intensities at random.
    """

    def __init__(
        self,
        spatial_masks: Callable[[Tensor, torch.Generator], Tensor],
        seed: int = 0,
        noise_range: Sequence[float] = (0.5, 3.0),
        noise_fraction: float = 0.25,
        augment: bool = True,
    ):
        self.spatial_masks = spatial_masks
        self.seed = seed
        self.noise_range = noise_range
        self.noise_fraction = noise_fraction
        self.augment = augment
        self.iteration = 0

    def __call__(
        self, batchdata: dict[str, Tensor], device: torch.device, non_blocking: bool = False, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Give (N, M + 1, H, W) of corrupted slice and spatial mask, and (N, M + 2, ...) of slice and both masks.

        The batch holds the slices as `StandardizeBraind` made them, under ``standard``.
        """
        standard, brain = (batchdata[key].to(device, non_blocking=non_blocking) for key in ("standard", "brain_mask"))
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + self.iteration)
        brain_mask = brain > 0
        if self.augment:
            standard, brain_mask = random_affine(standard, brain_mask, generator)
            standard = random_intensity(standard, generator)
        standard = torch.where(brain_mask, standard, torch.full_like(standard, BACKGROUND))
        spatial_mask = self.spatial_masks(brain_mask, generator)
        draw = torch.rand(2, len(standard), 1, 1, 1, generator=generator, device=device)
        low, high = self.noise_range
        noisy = standard + (low + (high - low) * draw[0]) / 3 * coarse_noise(standard.shape, generator)
        pure = NOISE_DEVIATION * torch.randn(standard.shape, generator=generator, device=device)
        filling = torch.where(draw[1] < self.noise_fraction, pure, noisy)
        hidden = spatial_mask.to(standard.dtype)
        inputs = torch.cat([hide(standard, spatial_mask, filling), hidden], dim=1)
        return inputs, torch.cat([standard, hidden, brain_mask.to(standard.dtype)], dim=1)


def masked_error(prediction: Tensor, target: Tensor, visible_weight: float = 0.1) -> Tensor:
    """Loss of a predicted mean alone: its squared error.

    Args:
        prediction: Mean (N, M, H, W).
        target: Slices, spatial mask and brain mask (N, M + 2, H, W).
        visible_weight: Weight of the squared error where nothing is hidden.

    Returns:
        The loss, a scalar.
    """
    error = (prediction - target[:, :-2]).square()
    return _hidden_and_visible(error, error, target, visible_weight)


def _hidden_and_visible(hidden_loss: Tensor, visible_loss: Tensor, target: Tensor, visible_weight: float) -> Tensor:
    """Mean of one loss over the hidden pixels, and of another over the rest of the brain times a weight.

    In several processes the pixels are those of all, so that the mean over the processes is the loss of all slices.
    """
    hidden, brain = target[:, -2:-1], target[:, -1:]
    pixels = idist.all_reduce(torch.stack([hidden.sum(), brain.sum()])).clamp(min=1) / idist.get_world_size()
    masked = (hidden_loss * hidden).sum() / pixels[0]
    visible = (visible_loss * (brain - hidden)).sum() / pixels[1]
    return (masked + visible_weight * visible) / hidden_loss.shape[1]


def masked_likelihood(prediction: Tensor, target: Tensor, visible_weight: float = 0.1) -> Tensor:
    """Loss of predicted mean and log-variance: squared error of the mean, Gaussian likelihood of the variance.

    The mean learns from its squared error alone; each pixel's likelihood is weighted by its variance, up to 1, so
    that the variance of well-known pixels does not drown the rest (beta-weighted likelihood, Seitzer et al. 2022,
    with beta = 1).

    Args:
        prediction: Mean and log-variance (N, 2 M, H, W).
        target: Slices, spatial mask and brain mask (N, M + 2, H, W).
        visible_weight: Weight of the squared error where nothing is hidden.

    Returns:
        The loss, a scalar.
    """
    mean, log_variance = prediction.chunk(2, dim=1)
    log_variance = log_variance.clamp(LEAST_LOG_VARIANCE, LARGEST_LOG_VARIANCE)
    error = (mean - target[:, :-2]).square()
    likelihood = error.detach() * torch.exp(-log_variance) + log_variance
    likelihood = likelihood * log_variance.detach().exp().clamp(max=1)
    return _hidden_and_visible(error + 0.5 * likelihood, error, target, visible_weight)


class ClipGradients:
    """Limit the norm of the gradients before every step.

    Args:
        network: The network in training.
        largest_norm: Gradients of a larger norm are scaled down to it.
    """

    def __init__(self, network: nn.Module, largest_norm: float):
        self.network = network
        self.largest_norm = largest_norm

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._clip)

    def _clip(self, engine: Engine) -> None:
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.largest_norm)


class SliceStream(Sampler[int]):
    """An endless stream of shuffled slices that can be entered at any iteration.

    Every slice comes once before any comes again. With several ranks each takes its share of one common stream.

    Args:
        number: Slices of the data set.
        batch_size: Slices of one iteration on one rank.
        seed: Seed of the order.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(self, number: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1):
        self.number = number
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.iteration = 0

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[int]:
        position = self.iteration * self.batch_size * self.world_size + self.rank
        shuffled_pass = -1
        while True:
            if position // self.number != shuffled_pass:
                shuffled_pass = position // self.number
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + shuffled_pass)
                order = torch.randperm(self.number, generator=generator).tolist()
            yield order[position % self.number]
            position += self.world_size


class SeedIterations:
    """Make every iteration's randomness a function of the seed and its number, so that a resumed training repeats it.

    Args:
        seed: Seed of dropout.
        prepare_batch: Gets the number of the iteration.
        sampler: Gets the iteration that a resumed training starts from.
    """

    def __init__(self, seed: int, prepare_batch: PrepareCorruptedBatch, sampler: SliceStream):
        self.seed = seed
        self.prepare_batch = prepare_batch
        self.sampler = sampler

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._iteration)

    def _start(self, engine: Engine) -> None:
        self.sampler.iteration = engine.state.iteration

    def _iteration(self, engine: Engine) -> None:
        self.prepare_batch.iteration = engine.state.iteration
        rank_seed = 1_000_000_007 * idist.get_rank()  # dropout is each process's own
        torch.manual_seed(self.seed * 1_000_003 + engine.state.iteration + rank_seed)


def average_weights(averaged: list[Tensor], newest: list[Tensor], updates: Tensor, momentum: float) -> None:
    """Move averaged weights towards the newest ones, in place: an exponential moving average with a warm-up.

    Args:
        averaged: Averaged parameters.
        newest: Newest parameters.
        updates: Number of updates so far.
        momentum: Weight of the newest, in (0, 1]; during the first updates it is at least 10 / (10 + ``updates``).
    """
    torch._foreach_lerp_(averaged, newest, max(momentum, 10 / (10 + int(updates))))


class AverageWeights:
    """Average the weights after every iteration.

    Ignite's `EMAHandler` does the same, but its warm-up starts again when a training is resumed.

    Args:
        averaged: The average; batch norm's statistics are copied.
        network: The network in training.
    """

    def __init__(self, averaged: AveragedModel, network: nn.Module):
        self.averaged = averaged
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, before anything that validates or saves."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._update)

    def _update(self, engine: Engine) -> None:
        self.averaged.update_parameters(self.network)


class TrainingCheckpoint:
    """Save all of a training in one file, atomically, and go on from it.

    MONAI's `CheckpointSaver` writes in place, so a killed process can leave half a checkpoint. The file is written
    at the end of every epoch (a validation) and when the process gets SIGINT or SIGTERM, which end the training after
    the iteration in progress, and after its validation where one is due. The best weights so far, by the validation
    error, are part of it.

    Of several processes the first writes and all read; a signal to one of them ends the training of all.

    Args:
        path: The checkpoint.
        save_dict: Named objects with a state dict; the trainer is saved beside them.
        ema: The averaged weights, which are validated.
        validator: Its state has the validation error as key metric (lower is better).
        resume: Go on from ``path`` where it exists.

    Attributes:
        best_metric: The lowest validation error so far.
        best_weights: The averaged weights that had it.
        interrupted: The signal that ended the training, or None.
    """

    def __init__(self, path: str, save_dict: dict, ema: AveragedModel, validator: Engine, resume: bool = False):
        self.path = Path(path)
        self.save_dict = save_dict
        self.ema = ema
        self.validator = validator
        self.resume = resume
        self.best_metric = float("inf")
        self.best_weights: dict[str, Tensor] = {}
        self.received: int = 0
        self.interrupted: signal.Signals | None = None
        self.replaced: dict[int, object] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the averaging of weights and the validation."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        engine.add_event_handler(Events.COMPLETED, self._release)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._release)

    def _start(self, engine: Engine) -> None:
        self.replaced = {number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        if self.resume and self.path.exists():
            self._load(engine)
        elif self.resume:
            logger.info(f"No checkpoint at {self.path}: training starts from the beginning.")
        iterations = idist.all_gather(engine.state.iteration)
        if isinstance(iterations, list) and len(set(iterations)) > 1:
            raise RuntimeError(
                f"The processes go on from different iterations {iterations}: set `output_dir` to a folder that all "
                "of them share."
            )

    def _load(self, engine: Engine) -> None:
        try:
            checkpoint = read_tensors(self.path)
            max_epochs = engine.state.max_epochs
            for name, target in self.save_dict.items():
                target.load_state_dict(checkpoint[name])
            engine.load_state_dict(checkpoint["trainer"])
            engine.state.max_epochs = max_epochs
            self.ema.load_state_dict(checkpoint["ema"])
            self.best_metric, self.best_weights = checkpoint["best_metric"], checkpoint["best_weights"]
            self._check(checkpoint)
        except Exception as error:  # whatever a file of another's makes the parts of a training raise
            raise ValueError(
                f"The checkpoint {self.path} belongs to another training ({str(error).partition(chr(10))[0][:200]}): "
                "train without `resume`, or with the settings it was made with."
            ) from None
        logger.info(f"Training goes on from iteration {engine.state.iteration} of {self.path}.")

    def _check(self, checkpoint: Mapping[str, object]) -> None:
        """Refuse what loads but could not be trained on: an optimizer of other shapes, numbers that are none."""
        optimizer = checkpoint["optimizer"]
        parameters = [parameter for group in self.save_dict["optimizer"].param_groups for parameter in group["params"]]
        for index, state in optimizer["state"].items():
            moments = [value for value in state.values() if isinstance(value, Tensor) and value.ndim]
            if any(value.shape != parameters[index].shape for value in moments):
                raise ValueError("the optimizer fits other weights")
        tensors = [*checkpoint["network"].values(), *checkpoint["ema"].values(), *self.best_weights.values()]
        if not all(value.isfinite().all() for value in tensors) or math.isnan(self.best_metric):
            raise ValueError("it holds numbers that are not finite")

    def _release(self, engine: Engine, error: BaseException | None = None) -> None:
        """Leave the signals to whom they belonged: a server that trains, for one, must still end when told to."""
        for number, handler in self.replaced.items():
            signal.signal(number, handler)
        if error is not None:
            raise error

    def _interrupt(self, number: int, frame: object) -> None:
        self.received = number

    def _agree(self) -> None:
        """Take the signal of one process as one to all, so that they stop together."""
        number = int(idist.all_reduce(self.received, "MAX"))
        self.interrupted = signal.Signals(number) if number else None

    def _iteration(self, engine: Engine) -> None:
        self._agree()
        if self.interrupted is not None and engine.state.iteration % engine.state.epoch_length:
            self._save(engine)
            engine.terminate()

    def _epoch(self, engine: Engine) -> None:
        self._agree()
        metric = self.validator.state.metrics[self.validator.state.key_metric_name]
        if not math.isfinite(metric):
            raise RuntimeError(
                f"The validation error became {metric} at iteration {engine.state.iteration}: look at the validation "
                f"slices for extreme intensities, lower `learning_rate`, and go on with --resume True; {self.path} "
                "stays as it was."
            )
        if metric < self.best_metric:
            self.best_metric = float(metric)
            self.best_weights = {
                name: value.detach().cpu().clone() for name, value in self.ema.module.state_dict().items()
            }
        self._save(engine)
        if self.interrupted is not None:
            engine.terminate()

    def _save(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        content = {name: target.state_dict() for name, target in self.save_dict.items()}
        content |= {
            "trainer": engine.state_dict(),
            "ema": self.ema.state_dict(),
            "best_metric": self.best_metric,
            "best_weights": self.best_weights,
        }
        save_tensors(self.path, content)
        logger.info(f"Saved {self.path} at iteration {engine.state.iteration}.")


class Progress:
    """Ignite's progress bar, with the loss where there is one.

    Args:
        desc: What the bar counts.
    """

    def __init__(self, desc: str = "training"):
        self.desc = desc

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer or evaluator."""
        bar = ProgressBar(persist=True, desc=self.desc)
        bar.attach(engine, output_transform=self._loss)

    @staticmethod
    def _loss(output: object) -> dict[str, float]:
        return {"loss": output["loss"].item()} if isinstance(output, dict) and "loss" in output else {}


def stop_on_non_finite_loss(engine: Engine) -> None:
    """End a training whose loss is no number any more; the last checkpoint stays.

    Raises:
        RuntimeError: When the loss is NaN or infinite.
    """
    if not torch.isfinite(engine.state.output["loss"]):
        raise RuntimeError(
            f"The loss became {engine.state.output['loss'].item()} at iteration {engine.state.iteration}: lower "
            "`learning_rate`, look at the training slices for extreme intensities, and go on with --resume True."
        )


class FiniteLoss:
    """Attaches `stop_on_non_finite_loss` to every iteration."""

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, before anything that saves."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, stop_on_non_finite_loss)


class WatchTraining:
    """Warn of what makes a training useless without ending it: batches of one slice, a validation error that rises.

    Args:
        network: The network in training.
        validator: Its state has the validation error as key metric (lower is better).
        patience: Validations that an error may stay above its best.
        largest_rise: Part, in (0, 1), of the error's fall so far that it may have risen again by then.
    """

    def __init__(self, network: nn.Module, validator: Engine, patience: int = 5, largest_rise: float = 0.25):
        self.network = network
        self.validator = validator
        self.patience = patience
        self.largest_rise = largest_rise
        self.errors: list[float] = []
        self.warned_of = math.nan

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the validation."""
        engine.add_event_handler(Events.ITERATION_STARTED(once=1), self._batch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._validated)

    def _batch(self, engine: Engine) -> None:
        normalized = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.network.modules())
        if normalized and len(engine.state.batch["image"]) * idist.get_world_size() == 1:
            logger.warning(
                "The batches hold one slice, of which batch normalization takes its statistics; those of other slices "
                "differ, and so will the validation: set `batch_size` to 2 or more (8 by default)."
            )

    def _validated(self, engine: Engine) -> None:
        self.errors.append(float(self.validator.state.metrics[self.validator.state.key_metric_name]))
        best = min(self.errors)
        age = len(self.errors) - 1 - self.errors.index(best)
        risen = self.errors[-1] - best > self.largest_rise * (self.errors[0] - best)
        if age >= self.patience and risen and best != self.warned_of:
            self.warned_of = best
            logger.warning(
                f"The validation error was lowest, {best:.4g}, {age} validations ago and is {self.errors[-1]:.4g} at "
                f"iteration {engine.state.iteration}. The best weights are kept; more iterations may not help: train "
                "on more slices, or set a lower `learning_rate` or fewer `iterations`."
            )


class TensorBoardPictures:
    """Show slices of the last validation batch in a row each: channels of target, input and output.

    With the high-frequency image as input: image (once for each network), corrupted and high-frequency image,
    reconstructions. With a spatial mask: image, spatial mask, brain mask; corrupted image, spatial mask; mean,
    log-variance.

    Args:
        log_dir: Folder of the TensorBoard events.
        validator: Its last batch is shown.
        number: Slices shown.
    """

    def __init__(self, log_dir: str, validator: Engine, number: int = 4):
        self.writer = SummaryWriter(log_dir)
        self.validator = validator
        self.number = number

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the validation."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._draw)

    def _draw(self, engine: Engine) -> None:
        output = self.validator.state.output
        inputs, target, reconstructions = (
            output[key][: self.number].float().cpu() for key in ("image", "label", "pred")
        )
        panels = ((torch.cat([target, inputs, reconstructions], dim=1) + 3) / 6).clamp(0, 1)
        panels = panels.flip(-1).transpose(-1, -2)  # RAS to a picture: right of the patient on the left, front on top
        rows = [torch.cat(list(row), dim=-1) for row in panels]
        picture = torch.cat(rows, dim=-2)[None]
        title = "targets, inputs, outputs"
        self.writer.add_image(title, picture, engine.state.iteration)
        self.writer.flush()
