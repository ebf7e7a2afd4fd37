"""What clients send and get: the Inference API's text classification, and TEI's ``/predict``."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from modeling.infer.decisions import read_thresholds
from modeling.infer.package import PackageSettings
from modeling.infer.texts import is_blank

Score = dict[str, Any]
"""``{"label": …, "score": …}``."""
_MOST_ITEMS = 16_384


def _whole(value: Any) -> Any:
    """Half an emoji, legal in JSON, becomes a question mark, as the classifier reads it."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _few(value: Any) -> Any:
    """A list of so many items is refused before each of them can be wrong, which takes time and memory."""
    if isinstance(value, list) and len(value) > _MOST_ITEMS:
        raise ValueError(f"a list of more than {_MOST_ITEMS:,} items")
    return value


Text = Annotated[StrictStr, BeforeValidator(_whole)]


class Parameters(BaseModel):
    """How to choose from the labels."""

    model_config = ConfigDict(extra="forbid")
    top_k: Annotated[Annotated[StrictInt, Field(ge=1)] | None, Field(description="At most this many labels.")] = None
    threshold: Annotated[
        Annotated[float, Field(ge=0, le=1)] | Literal["package"] | None,
        Field(description='Only labels from this probability; "package" for the package\'s own thresholds.'),
    ] = None
    function_to_apply: Annotated[Literal["sigmoid"] | None, Field(description="Labels do not exclude each other.")] = (
        None
    )


class ClassifyRequest(BaseModel):
    """A request of the Inference API."""

    inputs: Annotated[Text | list[Text], BeforeValidator(_few)] = Field(description="A text, or a list of texts.")
    parameters: Parameters | None = None
    options: Annotated[dict[str, Any] | None, Field(description="Of the hosted API; without effect here.")] = None


class PredictRequest(BaseModel):
    """A request of text-embeddings-inference."""

    inputs: Annotated[
        Text | list[Text] | list[Annotated[list[Text], Field(min_length=1, max_length=1)]], BeforeValidator(_few)
    ] = Field(description="A text, a list of texts, or a list of lists with one text each; pairs are refused.")
    raw_scores: Annotated[StrictBool, Field(description="Give logits.")] = False
    truncate: Annotated[StrictBool | None, Field(description="Without effect: a long text is read to its end.")] = None
    truncation_direction: Annotated[str | None, Field(description="Without effect.")] = None


def texts_of(inputs: str | Sequence[str] | Sequence[list[str]]) -> list[str]:
    """The texts of a request."""
    return [inputs] if isinstance(inputs, str) else [part if isinstance(part, str) else part[0] for part in inputs]


def ranked(text: str, row: np.ndarray, settings: PackageSettings, parameters: Parameters) -> list[Score]:
    """Labels with their probabilities, highest first; with the package's thresholds those that ``predict`` gives."""
    labels, threshold = settings.emotion_labels, parameters.threshold
    if threshold == "package" and is_blank(text):
        return []
    cutoffs = read_thresholds(settings, None if threshold == "package" else threshold or 0.0)
    order = np.argsort(-row, kind="stable")
    found = [{"label": labels[i], "score": float(row[i])} for i in order if row[i] >= cutoffs[i]]
    return found[: parameters.top_k]


def logit(probability: float) -> float:
    """The logit of a probability, as far as float32 tells it apart from 0 and 1."""
    tiny = float(np.finfo(np.float32).eps)
    clipped = min(max(probability, tiny), 1 - tiny)
    return math.log(clipped / (1 - clipped))
