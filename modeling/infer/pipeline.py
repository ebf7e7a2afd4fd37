"""The transformers pipeline for a package."""

import itertools
from collections.abc import Iterator
from typing import Any, cast

import torch
from transformers import TextClassificationPipeline

from modeling.infer.classifier import EmotionClassifier
from modeling.infer.features import Features
from modeling.infer.model import EmotionModel
from modeling.infer.predict import predict_logits


class EmotionPipeline(TextClassificationPipeline):
    """``pipeline("text-classification", model=…, trust_remote_code=True, top_k=None)``: texts → labels with scores.

    Scores are sigmoid probabilities, and ``top_k=None`` gives all of them. Their thresholds are in
    ``model.config.thresholds``. Tokenizer options (``truncation=True``) change nothing: a text too long for one window
    is read in several.
    """

    _load_tokenizer = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._classifier = EmotionClassifier.from_model(cast(EmotionModel, self.model))

    def check_model_type(self, supported_models: Any) -> None:
        """Accept the model: the list has only transformers' own models."""

    def preprocess(self, inputs: str | list[str], **tokenizer_kwargs: Any) -> dict[str, Features]:  # type: ignore[override]  # not a tokenizer's output
        """One text, or a batch of them, as ``{"features": …}``."""
        return {"features": self._classifier.features([inputs] if isinstance(inputs, str) else inputs)}

    def _forward(self, model_inputs: dict[str, Features]) -> dict[str, torch.Tensor]:  # type: ignore[override]
        features = model_inputs["features"]
        return {"logits": torch.from_numpy(predict_logits(self.model, features, self._classifier.batch_size))}

    def get_iterator(  # the parent's needs a tokenizer to make batches
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Yield results one by one, computed batch by batch on demand."""
        # A torch dataset has a length and items; it need not be iterable.
        texts = (inputs[i] for i in range(len(inputs))) if hasattr(inputs, "__len__") else iter(inputs)
        while batch := list(itertools.islice(texts, batch_size)):
            logits = self.forward(self.preprocess(batch, **preprocess_params), **forward_params)["logits"]
            yield from (self.postprocess({"logits": row[None]}, **postprocess_params) for row in logits)
