"""Label sets: GoEmotions' 28, the tutorial's 15, Ekman's, sentiment, or your own list.

The groupings of the 28 are in ``mappings/``, which evaluation reads too.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from modeling.infer import quote_names
from modeling.rows.tables import normal_name

GOEMOTIONS_28 = (
    "admiration",
    "amusement",
    "anger",
    "annoyance",
    "approval",
    "caring",
    "confusion",
    "curiosity",
    "desire",
    "disappointment",
    "disapproval",
    "disgust",
    "embarrassment",
    "excitement",
    "fear",
    "gratitude",
    "grief",
    "joy",
    "love",
    "nervousness",
    "optimism",
    "pride",
    "realization",
    "relief",
    "remorse",
    "sadness",
    "surprise",
    "neutral",
)

GOEMOTIONS_15 = (
    "fear",
    "sadness",
    "disgust",
    "disapproval",
    "annoyance",
    "anger",
    "disappointment",
    "optimism",
    "amusement",
    "surprise",
    "admiration",
    "excitement",
    "confusion",
    "joy",
    "love",
)

MAPPINGS = Path(__file__).parent / "mappings"
"""Built-in label mappings, one YAML file each."""


@dataclass(frozen=True)
class Taxonomy:
    """The labels of a run, in the order of the model's outputs.

    Attributes:
        labels: the L names.
        sources: which label of the corpus stands for which label of the run.
        ids: the corpus labels in the order of their ids.
        ignored: corpus labels that the run leaves out.
    """

    labels: tuple[str, ...]
    sources: Mapping[str, str]
    ids: tuple[str, ...]
    ignored: frozenset[str] = frozenset()

    def vector(self, names: Sequence[str]) -> list[int]:
        """Multi-hot vector of corpus label names; unknown names raise KeyError."""
        wanted = {name if name in self.labels else self.sources[name] for name in names if name not in self.ignored}
        return [int(label in wanted) for label in self.labels]


def _grouped(name: str) -> Taxonomy:
    """The label set of a built-in mapping: GoEmotions' 28 labels in its groups."""
    groups = yaml.safe_load((MAPPINGS / f"{name}.yaml").read_text(encoding="utf-8"))["labels"]
    sources = {source: target for target, members in groups.items() for source in members}
    return Taxonomy(tuple(groups), sources, GOEMOTIONS_28)


TAXONOMIES: dict[str, Taxonomy] = {
    "goemotions-28": Taxonomy(GOEMOTIONS_28, {name: name for name in GOEMOTIONS_28}, GOEMOTIONS_28),
    "goemotions-15": Taxonomy(
        GOEMOTIONS_15,
        {name: name for name in GOEMOTIONS_15},
        GOEMOTIONS_28,
        frozenset(GOEMOTIONS_28) - frozenset(GOEMOTIONS_15),
    ),
    "ekman": _grouped("ekman"),
    "sentiment": _grouped("sentiment"),
}


def build_taxonomy(labels: Sequence[str], corpus_labels: Sequence[str] | None = None) -> Taxonomy:
    """The taxonomy of a recipe.

    Args:
        labels: one name of :data:`TAXONOMIES`, or your own label names, which are put into Unicode's normal form C.
        corpus_labels: all label names of the corpus, if it declares them; those outside your own list are ignored.

    Raises:
        ValueError: a misspelled taxonomy, a label given twice or without a name, or one of your own labels that the corpus does not have.
    """
    if len(labels) == 1 and labels[0] in TAXONOMIES:
        return TAXONOMIES[labels[0]]
    if len(labels) == 1 and (close := difflib.get_close_matches(labels[0], TAXONOMIES, n=1)):
        raise ValueError(
            f"labels: {labels[0]!r} is not a label set. Did you mean {close[0]!r}? Remedy: use one of "
            f"{', '.join(TAXONOMIES)}, or list yours"
        )
    own = tuple(normal_name(label) for label in labels)
    bare = [label.strip() for label in own]  # the spaces around a cell do not count
    twice = sorted({label for label in own if bare.count(label.strip()) > 1 and label.strip()})
    if twice:
        raise ValueError(f"labels: {quote_names(twice)} is listed twice. Remedy: list each label once")
    if not all(label.strip() for label in own):
        raise ValueError(f"labels: {quote_names(own)} has an empty name. Remedy: give each label a name")
    known = own if corpus_labels is None else tuple(corpus_labels)
    missing = sorted(set(own) - set(known))
    if missing:
        raise ValueError(
            f"labels: the corpus has no {quote_names(missing)}. Remedy: use labels that it has: {', '.join(known)}"
        )
    return Taxonomy(own, {label: label for label in own}, known, frozenset(known) - frozenset(own))
