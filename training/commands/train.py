"""Train a recipe: the stages of a run, in order."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from modeling.infer.quiet import join_library_logs
from modeling.recipe import CROSS_FIT, Recipe
from modeling.records import AUDIT, ENVIRONMENT, FOLDS, LABEL_FREQUENCIES_PLOT, LOG, RECIPE, Environment, TrainingTime
from training.commands.verbs import TrainOptions
from training.corpora import Corpora, encode_share
from training.fit.batch import fit_batch, fit_epochs
from training.fit.build import build_model, build_trainer, fit_precision
from training.fit.distillation import distill, fingerprints
from training.fit.emissions import start_tracking, stop_tracking
from training.fit.folds import out_of_fold_logits
from training.fit.prepare import Prepared, prepare
from training.fit.results import finish, warning_of
from training.fit.sharding import (
    fit_checkpoints,
    gather_weights,
    load_weights,
    refuse_other_checkpoints,
    refuse_other_engine,
    refuse_unshardable,
    release,
    sharded_by,
)
from training.fit.start import find_start, record_start, refuse_other_settings
from training.run_folder import RunFolder, RunFolderError, describe_environment
from training.scores.plots import plot_label_frequencies
from training.trained import fingerprint, hash_file

logger = logging.getLogger(__name__)


def train(recipe: Recipe, options: TrainOptions, corpora: Corpora, null_test: str | None = None) -> int:
    """The stages of a run.

    Args:
        recipe: the recipe.
        options: where the run is written, and whether it resumes.
        corpora: what earlier runs of this command have read.
        null_test: see :func:`training.fit.prepare.prepare`.
    """
    run = RunFolder(str(options.output_dir))
    # The others wait while the main process prepares; teachers may take longer than the ten minutes that torch allows.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))
    with run.locked() if state.is_main_process else nullcontext():
        _train(recipe, options, corpora, null_test, run, state)
    return 0


def _train(
    recipe: Recipe, options: TrainOptions, corpora: Corpora, null_test: str | None, run: RunFolder, state: PartialState
) -> None:
    opened, tracker = time.perf_counter(), start_tracking(options.co2_country if state.is_main_process else None)
    with state.main_process_first():
        refuse_unshardable(recipe, sharded_by())
        refuse_other_settings(recipe)
        if state.is_main_process:
            refuse_to_replace(run, recipe, options, corpora, state.num_processes)
        log_to(run, state)
        if recipe.head == "mlp":
            logger.info(
                "head mlp is a baseline without a backbone: this run can be scored and compared, but not exported as a "
                "package. To publish a model, use head backbone"
            )
        if state.is_main_process and options.resume:
            run.refuse_other_inputs(hash_inputs(recipe, corpora))
        corpora.checked(recipe)
    fitted = fit_precision(recipe)
    encode_share(recipe, corpora, state)
    with state.main_process_first():  # which says what is wrong
        data = record_start(prepare(recipe, corpora, null_test), recipe)
    data = distill(data, fitted, state)
    started = time.perf_counter()
    fitted = fit_epochs(fit_batch(fitted, state), data, state)
    checkpoint: list[str | None] = [None]
    trainer = None if fitted.split == CROSS_FIT else build_trainer(build_model(fitted, data, state), fitted, data, run)
    if trainer is not None:
        refuse_other_engine(trainer)
    if state.is_main_process:  # only now: bad data or a bad setting must not cost the existing run
        run.clear(checkpoints=options.overwrite)
        describe_run(run, recipe, data, describe_environment(recipe, state.num_processes, fitted.bf16))
        checkpoint = [find_checkpoint(run) if options.resume else None]
        if trainer is not None and checkpoint[0]:
            fit_checkpoints(run, trainer)
    [resumed] = broadcast_object_list(checkpoint)
    out_of_fold = None
    if trainer is None:  # the folds' models before this one: two at once could fill the memory
        out_of_fold = out_of_fold_logits(data, fitted, run, state)
        trainer = build_trainer(build_model(fitted, data, state), fitted, data, run)
    trainer.train(resume_from_checkpoint=resumed)
    weights = gather_weights(trainer) if sharded_by() else None
    if state.is_main_process:
        if weights is not None:
            release(trainer)
            trainer.model = load_weights(build_model(fitted, data, state), weights)
        timing: TrainingTime = {
            "seconds_of_preparation": round(started - opened, 1),
            "seconds_of_training": round(time.perf_counter() - started, 1),
            "resumed": resumed is not None,
        }
        if emissions := stop_tracking(tracker):
            timing["emissions"] = emissions
        finish(run, trainer, data, recipe, null_test, timing, out_of_fold)
        if options.remove_checkpoints:
            shutil.rmtree(run.checkpoints)


def hash_inputs(recipe: Recipe, corpora: Corpora) -> dict[str, str]:
    """SHA-256 of everything that a run reads: the rows of each split, each teacher, the start, and the list of rows to
    leave out.

    Raises:
        CorpusError: bad data.
        RecipeError: a teacher or the start is missing.
    """
    start = {"start": fingerprint(find_start(recipe.start_from).model, "start_from")} if recipe.start_from else {}
    left_out = {"left_out": hash_file(Path(recipe.leave_out))} if recipe.leave_out else {}
    return corpora.rows(recipe).fingerprints() | fingerprints(recipe.teachers) | start | left_out


def refuse_to_replace(run: RunFolder, recipe: Recipe, options: TrainOptions, corpora: Corpora, processes: int) -> None:
    """Refuse a folder with a run that this command must not replace or cannot continue.

    Raises:
        RunFolderError: see :meth:`RunFolder.refuse_finished` and :meth:`RunFolder.refuse_other_recipe`.
        CorpusError: the rows are bad, too; with another folder they would be the next mistake.
    """
    if recipe.start_from and find_start(recipe.start_from).records.resolve() == run.path.resolve():
        raise RunFolderError(f"start_from: {run.path} is this run's own folder. Remedy: use another --output_dir")
    try:
        if options.resume and (run.path / RECIPE).exists():
            run.refuse_other_recipe(dataclasses.asdict(recipe), processes)
            refuse_other_checkpoints(run)
        run.refuse_finished(options.resume, options.overwrite)
    except RunFolderError:
        corpora.rows(recipe)
        raise


def find_checkpoint(run: RunFolder) -> str | None:
    """The checkpoint to continue from; those from which a run cannot continue are named and deleted."""
    checkpoint, damaged = run.inspect_checkpoints()
    for path, what in damaged.items():
        logger.warning("%s is deleted: %s", path.name, what)
        shutil.rmtree(path)
    logger.info("resuming from %s", checkpoint or "the start: there is no usable checkpoint")
    return str(checkpoint) if checkpoint else None


def describe_kept(recipe: Recipe, options: TrainOptions) -> tuple[str, bool]:
    """What a stopped run has kept, and whether ``--resume`` continues it."""
    run = RunFolder(str(options.output_dir))
    try:
        run.refuse_other_recipe(dataclasses.asdict(recipe), PartialState().num_processes)
    except (OSError, RunFolderError):
        return "nothing was trained yet", False
    if run.is_finished:
        return f"the finished run in {run.path} is as it was", options.resume
    checkpoint, _ = run.inspect_checkpoints()
    folds = "the finished folds and " if (run.path / FOLDS).is_file() else ""
    return f"{run.path} keeps {folds}{checkpoint.name if checkpoint else 'no checkpoint yet'}", True


class LogFile(logging.FileHandler):
    """A log that cannot be written stops the run; logging itself would print a traceback for each line.

    A line may hold half a character, since it may quote what somebody's file has.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Raise the error of writing a line."""
        raise  # logging calls this while it handles the error


def log_to(run: RunFolder, state: PartialState) -> None:
    """Log plain lines to the screen and to ``train.log``, from the main process."""
    for handler in logging.getLogger().handlers[:]:
        logging.getLogger().removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if state.is_main_process:
        handlers = [logging.StreamHandler(), LogFile(run.path / LOG)]
    logging.captureWarnings(True)  # warnings become log lines too
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers)
    for name in ("training", "modeling"):
        logging.getLogger(name).setLevel(logging.INFO)
    join_library_logs()


def describe_run(run: RunFolder, recipe: Recipe, data: Prepared, environment: Environment) -> None:
    """Write what is known before training: recipe, environment, audit, label frequencies."""
    run.write(ENVIRONMENT, environment)  # first: its rows of a step hold for the recipe before and after a resume
    run.write_recipe(recipe)
    run.write(AUDIT, data.audit)
    before, after = data.corpus["train"].labels.sum(axis=0), data.rows.labels.sum(axis=0)
    with run.replacing(LABEL_FREQUENCIES_PLOT) as path:
        plot_label_frequencies(path, before, after, data.corpus.labels, warning_of(recipe))
