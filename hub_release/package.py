"""The package: its file names, its seal, and the path of the model card's template."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, cast

from modeling import records
from modeling.infer.storage import staging
from modeling.records import Content, Record

_LONGEST_MESSAGE = 1_000


class ReleaseError(RuntimeError):
    """A run or package cannot be released; the message names the remedy."""


class RefusedError(ReleaseError):
    """A package does not pass its check.

    Attributes:
        problems: all of them, each with its remedy.
    """

    def __init__(self, where: str, problems: list[str]) -> None:
        super().__init__(f"{where}: {len(problems)} problem{'s' * (len(problems) != 1)}")
        self.problems = problems


def require_folder(path: Path) -> None:
    """Refuse a path that is not a folder; it is never looked up on the Hub.

    Raises:
        ReleaseError: it is not a folder.
    """
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist here"
        raise ReleaseError(
            f"{path} {what}, and the Hub was not asked. Remedy: check the path; for a model on the Hub, run hub_release "
            "pull REPO_ID FOLDER first"
        )


def require_free(folder: Path) -> None:
    """Refuse a folder that cannot be written without loss.

    Raises:
        ReleaseError: it is a file, or a folder that is not empty.
    """
    if folder.exists() and not folder.is_dir():
        raise ReleaseError(f"{folder} is a file. Remedy: name a folder that does not exist yet")
    if folder.exists() and any(folder.iterdir()):
        raise ReleaseError(f"{folder} already exists and is not empty. Remedy: delete it, or name another folder")


def scratch() -> AbstractContextManager[Path]:
    """A temporary folder, see :func:`modeling.infer.storage.staging`."""
    return staging(Path(tempfile.gettempdir()), "hub_release-")


def printable(problem: Exception) -> str:
    """The message of a problem, for a terminal: a stranger's files can make it long or unprintable."""
    text = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in str(problem))
    return (
        text if len(text) <= _LONGEST_MESSAGE else f"{text[: _LONGEST_MESSAGE // 2]} … {text[-_LONGEST_MESSAGE // 2 :]}"
    )


@dataclass(frozen=True)
class Layout:
    """File names of a package, relative to its folder. The first six are the reference's."""

    card: str = "README.md"
    config: str = "config.json"
    focal: str = records.FOCAL
    head: str = "head_weights.pt"
    code: str = "infer.py"
    adapter: str = "lora_adapter/adapter_model.safetensors"
    adapter_config: str = "lora_adapter/adapter_config.json"
    safe_head: str = "head.safetensors"
    tokenizer: str = "tokenizer.json"
    golden: str = records.GOLDEN
    metrics: str = records.METRICS
    thresholds: str = records.THRESHOLDS
    per_label: str = records.PER_LABEL
    calibration: str = records.CALIBRATION
    audit: str = records.AUDIT
    recipe: str = records.RECIPE
    environment: str = records.ENVIRONMENT
    timing: str = records.TIMING
    context: str = records.CONTEXT
    label_frequencies_plot: str = records.LABEL_FREQUENCIES_PLOT
    per_label_plot: str = records.PER_LABEL_PLOT
    precision_recall_plot: str = records.PRECISION_RECALL_PLOT
    thresholds_plot: str = records.THRESHOLDS_PLOT
    confusions_plot: str = records.CONFUSIONS_PLOT
    reliability_plot: str = records.RELIABILITY_PLOT
    adaptation: str = records.ADAPTATION
    graph: str = "onnx/model.onnx"
    int8_graph: str = "onnx/model_quantized.onnx"
    graph_record: str = records.GRAPHS
    graph_code: str = "infer_onnx.py"
    graph_requirements: str = "requirements_onnx.txt"
    merged: str = "model.safetensors"
    served: str = "sequence_classification/model.safetensors"
    served_config: str = "sequence_classification/config.json"
    served_tokenizer: str = "sequence_classification/tokenizer.json"
    served_tokenizer_config: str = "sequence_classification/tokenizer_config.json"
    served_modules: str = "sequence_classification/modules.json"
    served_pooling: str = "sequence_classification/1_Pooling/config.json"
    details: str = "card.json"
    requirements: str = "requirements.txt"
    handler: str = "handler.py"
    sums: str = "SHA256SUMS"

    def of_the_graphs(self) -> tuple[str, ...]:
        """The files that a package has only if it was exported with a graph; it need not have both graphs."""
        return (self.graph, self.int8_graph, self.graph_record, self.graph_code, self.graph_requirements)

    def of_the_merged(self) -> tuple[str, ...]:
        """The files of which a package has some, by its kind, only if it was exported with ``--merged``."""
        served = (self.served, self.served_config, self.served_tokenizer, self.served_tokenizer_config)
        return (self.merged, *served, self.served_modules, self.served_pooling)

    def files(
        self, reads_words: bool = False, graphs: Collection[str] = (), merged: Collection[str] = ()
    ) -> tuple[str, ...]:
        """All file names that a package must have; the tokenizer only if the backbone reads words.

        ``graphs`` are those that there are, :attr:`graph` or :attr:`int8_graph`; what belongs to them comes along. Of
        the merged model's files there are only those in ``merged``.
        """
        left_out = {self.adaptation} | set(() if reads_words else (self.tokenizer,))
        left_out |= {self.graph, self.int8_graph} - set(graphs) if graphs else set(self.of_the_graphs())
        left_out |= {name for name in self.of_the_merged() if name not in merged}
        return tuple(name for name in astuple(self) if name not in left_out)


LAYOUT = Layout()
ALL_FILES = frozenset(astuple(LAYOUT))
OPTIONAL = frozenset({LAYOUT.details})
"""Files that packages of earlier versions lack."""
HANDLER = Path(__file__).with_name("shipped") / LAYOUT.handler
"""What ships as a package's ``handler.py``."""

OF_THE_HUB = frozenset({".gitattributes"})
"""Files that the Hub itself writes into every repository. Never checked, pushed or removed."""
_OF_ITS_CLIENT = re.compile(
    r"\.cache/huggingface/(?:\.gitignore|CACHEDIR\.TAG|download/.+\.(?:lock|metadata|incomplete))"
)
"""Files in which the Hub's client records its downloads into a folder."""
_OF_PYTHON = re.compile(r"__pycache__/(?:infer|infer_onnx|handler)\.[\w.-]+\.pyc")
"""Files in which Python keeps the compiled code of a package that was imported. Never checked, pushed or pulled."""
_RECIPE_BYTES = 2**16
_RECIPE_DEPTH = 5


def package_files(folder: Path) -> dict[str, Path]:
    """Path in the package → file, sorted, for everything in a folder except files of the Hub, its client and Python.

    Entries that are not plain files are listed too: check before you read one.
    """
    from modeling.infer.files import entries  # the layout itself needs the standard library alone

    found = {path.relative_to(folder).as_posix(): path for path in entries(folder)}
    return {
        name: path
        for name, path in sorted(found.items())
        if (path.is_symlink() or not path.is_dir()) and name not in OF_THE_HUB and not _OF_ITS_CLIENT.fullmatch(name)
        if not (_OF_PYTHON.fullmatch(name) and _follows_its_source(path))
    }


def _follows_its_source(compiled: Path) -> bool:
    """Does Python compare this compiled code with the time and size of its source before it runs it?

    Python itself writes no other. Code that is compared by hash, or not at all, could be anything.
    """
    if compiled.is_symlink() or not compiled.is_file():
        return False
    with compiled.open("rb") as file:
        return file.read(8)[4:] == bytes(4)


def read_record(package: Path, record: Record[Content]) -> Content:
    """A recorded JSON file, of which no more is known than that it is an object: it may be a stranger's.

    Raises:
        PackageError: it is missing, or not strict JSON.
    """
    from modeling.infer.files import read_json  # the layout itself needs the standard library alone

    return cast(Content, read_json(package, record))


def read_recipe(package: Path) -> dict[str, Any]:
    """The run's recipe.

    Raises:
        ValueError: it is not a YAML mapping, or names a setting twice; or it has aliases, which may grow without bound
            when written out; or it is so deep or long that reading it may never end.
    """
    import yaml  # the layout itself needs only the standard library

    if (package / LAYOUT.recipe).stat().st_size > _RECIPE_BYTES:
        raise ValueError(f"has more than {_RECIPE_BYTES:,} bytes")
    text = (package / LAYOUT.recipe).read_text(encoding="utf-8")
    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _RECIPE_DEPTH:
                raise ValueError("has aliases or deeply nested lists, which no run writes")
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ValueError("has no settings")
    node: Any = yaml.compose(text, yaml.SafeLoader)
    if len(node.value) != len(content):
        raise ValueError("names a setting twice")
    return content


def sha256(path: Path) -> str:
    """The hash of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(package: Path) -> None:
    """Write ``SHA256SUMS`` over every other file, for ``sha256sum -c``; call it after each change."""
    lines = [f"{sha256(package / name)}  {name}\n" for name in package_files(package) if name != LAYOUT.sums]
    (package / LAYOUT.sums).write_text("".join(lines), encoding="utf-8")


def template_path() -> Path:
    """The model card's template: next to this file in an installed wheel, at the top of a checkout."""
    here = Path(__file__).resolve().parent
    name = "model_card_template.md"
    path = here / name if (here / name).is_file() else here.parent / name
    if not path.is_file():
        raise ReleaseError(f"{name} is missing. Remedy: install goemotions-mistral again")
    return path
