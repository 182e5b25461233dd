"""The state of a training on disk: it goes on from there after any interruption."""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from ..common.outputs import check_output, check_writable, file_digest, is_unchanged, locked, read_tensors, save_tensors
from ..common.paths import bundle_root
from ..common.share import first_checks
from ..data.slices import slices_digest
from ..method.description import from_description
from ..method.refinement import Refinement
from .handlers import validation_error

logger = logging.getLogger(__name__)
SLICES = "slices"  # in the settings of a checkpoint: a digest for each split


def training_settings(
    model: Refinement, slices: Mapping[str, Sequence[Mapping[str, Any]]] | None = None, **settings: object
) -> dict[str, object]:
    """Join what describes a model with what else decides how its training goes, for the checkpoint.

    Args:
        model: The model in training.
        slices: Those that it is trained and validated on, by the name of the split; see `slices_digest`.
        settings: Other ids and their values: numbers, texts, truth values or lists of them.
    """
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    digests = {split: slices_digest(items) for split, items in (slices or {}).items()}
    return {**from_description(model.description), **plain, SLICES: digests}


def check_training(
    model_file: str, checkpoint: str, resume: bool = False, updates: bool = False, anew: bool = False
) -> None:
    """Refuse outputs of a training that cannot be written or would replace others, before any long work starts.

    Of several processes the first, which writes them, looks for all.

    Args:
        model_file: Where the model will go.
        checkpoint: Where the checkpoint is, or will be.
        resume: Whether to go on from the checkpoint.
        updates: Whether some networks are trained alone, the others being those of the model file.
        anew: Whether the model file is there to be replaced, as that of a server that trains on request.

    Raises:
        OSError: When a folder cannot be made or written to.
        ValueError: When one of them is there and was not written by this training.
        RuntimeError: When another run writes the checkpoint.
    """
    first_checks(lambda: _check_training(Path(model_file), Path(checkpoint), resume, updates, anew))


def _check_training(model_file: Path, checkpoint: Path, resume: bool, updates: bool, anew: bool) -> None:
    events = checkpoint.with_name("tensorboard")
    if os.path.realpath(model_file) in map(os.path.realpath, (checkpoint, events)):
        raise ValueError(
            f"`model_file` is {model_file}, where this training writes something else: set another `model_file`."
        )
    if os.path.lexists(events) and not events.is_dir():
        raise ValueError(f"{events} is in the way, where a folder is needed: move it, or set another `output_dir`.")
    for path in (checkpoint, model_file):
        check_writable(path.absolute().parent)
    with locked(checkpoint):
        if os.path.lexists(checkpoint) and not (resume or anew):
            raise ValueError(
                f"{checkpoint} holds a training already: add --resume True to go on with it, set another `output_dir`, "
                "or delete it to train anew."
            )
        check_output(checkpoint, replaces=file_digest(checkpoint) if resume and checkpoint.is_file() else None)
    if not anew:
        check_not_shipped(model_file)
    there = file_digest(model_file) if model_file.is_file() and (updates or anew) else None
    check_output(model_file, checkpoint.absolute().parent, there)


def check_not_shipped(model_file: str | os.PathLike) -> None:
    """Refuse to write over the model that came with the bundle, by whatever link.

    Raises:
        ValueError: When it is that model.
    """
    shipped = os.path.join(bundle_root(), "models", "model.pt")
    if os.path.exists(shipped) and os.path.exists(model_file) and os.path.samefile(model_file, shipped):
        raise ValueError(f"{model_file} is the model of the bundle: copy it, and set `model_file` to the copy.")


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
        settings: What decides how the training goes, see `training_settings`; a resumed training must have the same.
        resume: Go on from ``path`` where it exists.

    Attributes:
        best_metric: The lowest validation error so far.
        best_weights: The averaged weights that had it.
        interrupted: The signal that ended the training, or None.
        goes_on: Whether this run has trained anything.
    """

    def __init__(
        self,
        path: str,
        save_dict: dict,
        ema: AveragedModel,
        validator: Engine,
        settings: Mapping[str, object] | None = None,
        resume: bool = False,
    ):
        self.path = Path(path)
        self.save_dict = save_dict
        self.ema = ema
        self.validator = validator
        self.settings: dict[str, Any] = dict(settings or {})
        self.resume = resume
        self.best_metric = float("inf")
        self.best_weights: dict[str, Tensor] = {}
        self.received: int = 0
        self.interrupted: signal.Signals | None = None
        self.replaced: dict[int, Any] = {}
        self.replaces: str | None = None  # digest of a checkpoint from elsewhere, with which the training goes on
        self.goes_on = False
        self.lock = ExitStack()

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the averaging of weights and the validation."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        engine.add_event_handler(Events.COMPLETED, self._release)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._release)

    def _start(self, engine: Engine) -> None:
        self.replaced = {number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        if idist.get_rank() == 0:
            self.lock.enter_context(locked(self.path))
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
            checkpoint: Any = read_tensors(self.path)
            self._check_settings(checkpoint["settings"])
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
                "train without `resume`, or with the settings and slices it was made with."
            ) from None
        self.replaces = None if is_unchanged(self.path) else file_digest(self.path)
        logger.info(f"Training goes on from iteration {engine.state.iteration} of {self.path}.")

    def _check_settings(self, before: Mapping[str, Any]) -> None:
        """Refuse to go on with settings that the training so far did not have."""
        slices = before.get(SLICES, {})  # of older versions: not noted
        for split, digest in self.settings.get(SLICES, {}).items():
            if slices.get(split, digest) != digest:
                raise ValueError(f"the slices for {split} are others than before")
        for name in {**self.settings, **before}:
            if name != SLICES and self.settings.get(name) != before.get(name):
                raise ValueError(f"`{name}` was {before.get(name)!r} and is {self.settings.get(name)!r}")

    def _check(self, checkpoint: Mapping[str, Any]) -> None:
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
        self.lock.close()
        if error is not None:
            raise error

    def _interrupt(self, number: int, frame: object) -> None:
        self.received = number

    def _agree(self) -> None:
        """Take the signal of one process as one to all, so that they stop together."""
        number = int(idist.all_reduce(self.received, "MAX"))
        self.interrupted = signal.Signals(number) if number else None

    def is_finished(self, model_file: str | os.PathLike) -> bool:
        """Whether there was nothing left to train, and the model of all that was trained before is there."""
        if self.goes_on or not is_unchanged(model_file, self.path.absolute().parent):
            return False
        return os.stat(model_file).st_mtime_ns >= self.path.stat().st_mtime_ns

    def _iteration(self, engine: Engine) -> None:
        self.goes_on = True
        self._agree()
        state: Any = engine.state
        if self.interrupted is not None and state.iteration % state.epoch_length:
            self._save(engine)
            engine.terminate()

    def _epoch(self, engine: Engine) -> None:
        self._agree()
        metric = validation_error(self.validator)
        if not math.isfinite(metric):
            raise RuntimeError(
                f"The validation error became {metric} at iteration {engine.state.iteration}: look at the validation "
                f"slices for extreme intensities, lower `learning_rate`, and go on with --resume True; {self.path} "
                "stays as it was."
            )
        if metric < self.best_metric:
            self.best_metric = metric
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
            "settings": self.settings,
            "trainer": engine.state_dict(),
            "ema": self.ema.state_dict(),
            "best_metric": self.best_metric,
            "best_weights": self.best_weights,
        }
        save_tensors(self.path, content, replaces=self.replaces)
        self.replaces = self.replaces and file_digest(self.path)
        logger.info(f"Saved {self.path} at iteration {engine.state.iteration}.")
