"""Label sets: GoEmotions' 28, the tutorial's 15, Ekman's, sentiment, or your own list.

The groupings are those of Demszky et al., "GoEmotions: A Dataset of Fine-Grained Emotions", ACL 2020, figure 2 and
its released ``ekman_mapping.json`` and ``sentiment_mapping.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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

_EKMAN = {
    "anger": "anger annoyance disapproval",
    "disgust": "disgust",
    "fear": "fear nervousness",
    "joy": "joy amusement approval excitement gratitude love optimism relief pride admiration desire caring",
    "sadness": "sadness disappointment embarrassment grief remorse",
    "surprise": "surprise realization confusion curiosity",
    "neutral": "neutral",
}

_SENTIMENT = {
    "positive": "amusement excitement joy love desire optimism caring pride admiration gratitude relief approval",
    "negative": "fear nervousness remorse embarrassment disappointment sadness grief disgust anger annoyance "
    "disapproval",
    "ambiguous": "realization surprise curiosity confusion",
    "neutral": "neutral",
}


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


def _targets(groups: Mapping[str, str]) -> dict[str, str]:
    return {source: target for target, sources in groups.items() for source in sources.split()}


TAXONOMIES: dict[str, Taxonomy] = {
    "goemotions-28": Taxonomy(GOEMOTIONS_28, {name: name for name in GOEMOTIONS_28}, GOEMOTIONS_28),
    "goemotions-15": Taxonomy(
        GOEMOTIONS_15,
        {name: name for name in GOEMOTIONS_15},
        GOEMOTIONS_28,
        frozenset(GOEMOTIONS_28) - frozenset(GOEMOTIONS_15),
    ),
    "ekman": Taxonomy(tuple(_EKMAN), _targets(_EKMAN), GOEMOTIONS_28),
    "sentiment": Taxonomy(tuple(_SENTIMENT), _targets(_SENTIMENT), GOEMOTIONS_28),
}


def build_taxonomy(labels: Sequence[str], corpus_labels: Sequence[str] | None = None) -> Taxonomy:
    """The taxonomy of a recipe.

    Args:
        labels: one name of :data:`TAXONOMIES`, or two or more label names of your own.
        corpus_labels: all label names of the corpus where it declares them; those outside an own list are ignored.

    Raises:
        ValueError: unknown taxonomy, a label twice, or an own label that the corpus does not have.
    """
    if len(labels) == 1:
        if labels[0] not in TAXONOMIES:
            raise ValueError(
                f"labels: unknown label set {labels[0]!r}; use one of {', '.join(TAXONOMIES)}, or list your labels"
            )
        return TAXONOMIES[labels[0]]
    own = tuple(labels)
    twice = sorted({label for label in own if own.count(label) > 1})
    if twice:
        raise ValueError(f"labels: {', '.join(twice)} is listed twice")
    if corpus_labels is None:
        return Taxonomy(own, {label: label for label in own}, own)
    missing = sorted(set(own) - set(corpus_labels))
    if missing:
        raise ValueError(f"labels: the corpus has no {', '.join(missing)}; it has {', '.join(corpus_labels)}")
    return Taxonomy(
        own, {label: label for label in own}, tuple(corpus_labels), frozenset(corpus_labels) - frozenset(own)
    )
