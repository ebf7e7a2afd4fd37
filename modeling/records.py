"""The files of a run folder and their contents: written by training, read by hub_release.

A record is a file name with the type of its content. The content is a JSON object unless the name says otherwise.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, NotRequired, TypedDict, TypeVar

Content = TypeVar("Content")

Policy = Literal["fixed", "global", "per_label"]
"""Thresholds: 0.5 for all labels, one for all labels, one for each label."""
POLICIES: tuple[Policy, ...] = ("fixed", "global", "per_label")


class Record(str, Generic[Content]):
    """Name of a file in a run folder, with the type of its content."""


class PolicyScores(TypedDict):
    """Scores of a split under one threshold policy; ``intervals_95`` maps each score's name to [low, high]."""

    macro_f1: float
    micro_f1: float
    exact_accuracy: float
    intervals_95: dict[str, list[float]]


ScoreName = Literal["macro_f1", "micro_f1", "exact_accuracy"]
SCORE_NAMES: tuple[ScoreName, ...] = ("macro_f1", "micro_f1", "exact_accuracy")
SplitScores = dict[Policy, PolicyScores]


class Metrics(TypedDict):
    """Scores of each split, the split protocol, and the null test, if they come from one.

    ``bag_of_words`` are the test scores of TF-IDF with logistic regression, for comparison. With protocol cross-fit,
    validation and test are the same rows out of fold: validation is scored with thresholds that all of them gave, test
    with those that the other folds gave.
    """

    validation: SplitScores
    test: SplitScores
    test_without_copies: NotRequired[SplitScores]
    bag_of_words: NotRequired[SplitScores]
    protocol: str
    null_test: str | None


def scores_by_split(metrics: Metrics, with_baseline: bool = False) -> dict[str, SplitScores]:
    """The scores of the splits that a run has scored, by the split's name, and those of its bag of words if asked for."""
    found = {"validation": metrics["validation"], "test": metrics["test"]}
    if "test_without_copies" in metrics:
        found["test_without_copies"] = metrics["test_without_copies"]
    if with_baseline and "bag_of_words" in metrics:
        found["bag_of_words"] = metrics["bag_of_words"]
    return found


ThresholdTable = TypedDict(
    "ThresholdTable",
    {
        "source": str,
        "global": float,
        "per_label": dict[str, float],
        "per_label_unshrunk": dict[str, float],
    },
)
"""Thresholds from validation: one for all labels, one per label, and for comparison those with the best F1 on these rows.
(The last name is from packages whose own thresholds were drawn from these toward the common one.)"""


class CalibrationChoice(TypedDict):
    """Which calibration was chosen, and why."""

    method: str
    reason: str
    cross_fitted_log_loss: NotRequired[dict[str, float]]


class CalibrationRecord(CalibrationChoice):
    """The calibration of the logits, and how well probabilities were calibrated ``before`` and ``after`` it."""

    validation: dict[str, dict[str, float]]
    test: dict[str, dict[str, float]]
    scale: list[float]
    bias: list[float]


class SplitAudit(TypedDict):
    """One split of the corpus."""

    rows: int
    sha256: str
    rows_without_label: int
    positives: dict[str, int]
    texts_also_in_train: int | None


class TrainingRows(TypedDict):
    """The training rows after balancing."""

    real: int
    synthetic: int
    positives: dict[str, int]
    synthetic_with_parent_outside_train: int


class CorpusFindings(TypedDict):
    """What is wrong with the rows: copies across splits, label noise, labels without rows."""

    copies: dict[str, Any]
    repeated_in_train: dict[str, Any]
    labels_without_positives: dict[str, list[str]]
    audit_policy: NotRequired[dict[str, Any]]


class StartRecord(TypedDict):
    """The model that a run starts from: its id on the Hub, if it is there; the hash of its files; the labels whose rows
    of the classifier were taken over; and the hashes of the splits that it and its own starts have learned from."""

    hub_id: str | None
    sha256: str
    labels_taken: list[str]
    seen: list[str]


class LeftOut(TypedDict):
    """Training rows that were left out, and the hash of the file that lists them."""

    rows: int
    sha256: str


class RowsAudit(TypedDict):
    """Where the rows and targets come from, and how much of the texts is cut off in training."""

    corpus: str
    revision: str
    labels: list[str]
    splits: dict[str, SplitAudit]
    training_rows: TrainingRows
    truncation: NotRequired[dict[str, dict[str, int]]]
    teachers: NotRequired[dict[str, str]]
    start: NotRequired[StartRecord]
    left_out: NotRequired[LeftOut]


class Audit(CorpusFindings, RowsAudit):
    """The audit of a run; ``suspected_label_permutations`` are labels that look exchanged."""

    corpus_sha256: dict[str, str]
    protocol: str
    imbalance: dict[str, dict[str, Any]]
    suspected_label_permutations: dict[str, list[dict[str, Any]]]


class Environment(TypedDict):
    """Versions, seed, hardware and commit of the run."""

    python: str
    packages: dict[str, str]
    seed: int
    processes: int
    rows_of_step: NotRequired[int]
    threads: int
    bf16: NotRequired[bool]
    machine: str
    cpu: str
    cores: int | None
    memory_gib: float
    gpu: str | None
    gpus: int
    git_commit: str | None


class Emissions(TypedDict):
    """Grams of CO2 equivalent, the source of the estimate, and the country."""

    grams: float
    source: str
    location: str


class TrainingTime(TypedDict):
    """Seconds of preparing and training; of the last part of a run that was resumed."""

    seconds_of_preparation: float
    seconds_of_training: float
    resumed: bool
    emissions: NotRequired[Emissions]


class Timing(TrainingTime):
    """Seconds of each stage, and the ``epochs`` that were trained."""

    seconds_of_scoring: float
    epochs: float


class Context(TypedDict):
    """What a reader needs besides the scores; ``local`` says which parts are folders on this machine."""

    bootstrap_draws: int
    unreliable: dict[str, float]
    published: list[dict[str, Any]]
    local: dict[str, bool]


class GoldenRow(TypedDict):
    """A text and the trained model's probabilities for it."""

    text: str
    probabilities: list[float]


class Golden(TypedDict):
    """Fixed texts and the trained model's probabilities, to verify a loaded copy."""

    labels: list[str]
    rows: list[GoldenRow]


class RowScores(TypedDict):
    """Scores of the rows of a split, with thresholds tuned on validation."""

    macro_f1: float
    log_loss: float


class BackendScores(TypedDict):
    """Scores of one way to compute a package's model.

    ``thresholds`` are tuned for it on validation; ``golden_difference`` is the largest difference from a golden
    probability.
    """

    thresholds: dict[str, float]
    golden_difference: float
    validation: RowScores
    test: RowScores


class BackendRecord(BackendScores):
    """The same with its speed, from the text to its probabilities."""

    texts_per_second: float


class GraphRecord(TypedDict):
    """A package's graphs, and PyTorch beside them, measured on one machine with so many threads and rows at once."""

    cpu: str
    threads: int
    batch_size: int
    graphs: dict[str, BackendRecord]


class AdaptationRecord(TypedDict):
    """Thresholds for other texts, of a file with this hash; the fields of
    :class:`modeling.infer.adaptation.Adaptation`."""

    texts: int
    labeled: int
    positives: dict[str, int]
    thresholds: dict[str, float]
    expected_f1: dict[str, float]
    file_sha256: str


class FocalConfig(TypedDict):
    """The focal loss: alpha per label, and gamma."""

    alpha: dict[str, float]
    gamma: float


RECIPE = Record[dict[str, Any]]("recipe.yaml")
ENVIRONMENT = Record[Environment]("environment.json")
AUDIT = Record[Audit]("audit.json")
METRICS = Record[Metrics]("metrics.json")
THRESHOLDS = Record[ThresholdTable]("thresholds.json")
CALIBRATION = Record[CalibrationRecord]("calibration.json")
TIMING = Record[Timing]("timing.json")
"""Written last: a run with this file is finished."""
CONTEXT = Record[Context]("context.json")
GOLDEN = Record[Golden]("golden.json")
FOCAL = Record[FocalConfig]("focal_config.json")
GRAPHS = Record[GraphRecord]("graphs.json")
"""Written by export, for a package with a graph."""
ADAPTATION = Record[AdaptationRecord]("adaptation.json")
"""Written by adapt, for a package with thresholds for other texts."""
TORCH = "torch"
INT8 = "onnx-int8"
"""Names in it: of PyTorch, and of the graph in int8."""
PER_LABEL = "per_label.csv"
SCORES = "scores.md"
PREDICTIONS = "predictions.npz"
SCORED_TEXTS = "scored_texts.jsonl"
"""The texts of validation and test in the order of ``predictions.npz``, a JSON object in each line. Never published."""
SUSPECTS = "suspects.csv"
"""Labels that look wrong, written by the verb of this name."""
FOLDS = "folds.npz"
"""Logits of the rows of each fold that is finished, while a run is cross-fitted and after: a stopped run goes on from them."""
LOG = "train.log"
LABEL_FREQUENCIES_PLOT = "label_frequencies.png"
PER_LABEL_PLOT = "per_label.png"
PRECISION_RECALL_PLOT = "precision_recall.png"
THRESHOLDS_PLOT = "thresholds.png"
CONFUSIONS_PLOT = "confusions.png"
RELIABILITY_PLOT = "reliability.png"

KNOWN_BEFORE = (RECIPE, ENVIRONMENT, AUDIT, LABEL_FREQUENCIES_PLOT)
"""Files that a run writes before it trains."""
PUBLISHED_RESULTS = (
    *(FOCAL, GOLDEN, METRICS, THRESHOLDS, PER_LABEL, CALIBRATION, TIMING, CONTEXT),
    *(PER_LABEL_PLOT, PRECISION_RECALL_PLOT, THRESHOLDS_PLOT, CONFUSIONS_PLOT, RELIABILITY_PLOT),
)
"""Results that a package takes unchanged."""
RESULTS = (*PUBLISHED_RESULTS, SCORES, PREDICTIONS, SCORED_TEXTS)
"""Files that only a finished run has."""
RECORDED = (*KNOWN_BEFORE, *PUBLISHED_RESULTS)
"""Files that a package takes from the run folder."""

LOG_LOSSES = "validation_log_losses"
"""Array in ``predictions.npz``: the cross-fitted log loss of each validation row."""

MODEL = "model"
"""Folder with the best weights and their configuration."""
MODEL_CONFIG = f"{MODEL}/config.json"
ADAPTER_WEIGHTS = f"{MODEL}/adapter_model.safetensors"
BASELINE_WEIGHTS = f"{MODEL}/model.safetensors"
"""Weights of a model without a backbone."""
