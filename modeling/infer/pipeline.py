"""The transformers pipeline for a package."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from transformers import TextClassificationPipeline

from modeling.infer.classifier import EmotionClassifier
from modeling.infer.decisions import read_top_k
from modeling.infer.features import Features
from modeling.infer.inherited import PIPELINE_REMEDIES, REFUSED_PIPELINE_METHODS, refuse, refuse_arguments
from modeling.infer.model import EmotionModel
from modeling.infer.predict import predict_logits
from modeling.infer.texts import check_texts, iterate_texts

_FUNCTIONS = ("sigmoid", "softmax", "none")
_WITHOUT_EFFECT = ("padding", "truncation")
"""Tokenizer options that many callers pass. Nothing is cut off: a text too long for one window is read in several."""
_PREPROCESSORS = ("tokenizer", "feature_extractor", "image_processor", "video_processor", "processor")


@refuse(REFUSED_PIPELINE_METHODS)
class EmotionPipeline(TextClassificationPipeline):
    """``pipeline("text-classification", model=…, trust_remote_code=True, top_k=None)``: texts → labels with scores.

    Scores are sigmoid probabilities, and ``top_k=None`` gives all of them. Their thresholds are in
    ``model.config.decision_thresholds``. ``truncation`` and ``padding`` change nothing: a text too long for one window is read
    in several.
    """

    _load_tokenizer = False

    def __init__(self, **kwargs: Any) -> None:
        brought = [name for name in _PREPROCESSORS if kwargs.get(name) is not None]
        refuse_arguments(brought, dict.fromkeys(_PREPROCESSORS, "leave it out: the package has its own"), "")
        super().__init__(**kwargs)
        self._classifier = EmotionClassifier.from_model(cast(EmotionModel, self.model))

    def __call__(self, inputs: Iterable[str], **kwargs: Any) -> Any:  # type: ignore[override]  # dicts and pairs are refused
        """Classify one text, or whatever is iterable and holds texts.

        A generator, another iterator or a torch dataset is read on demand, and gives an iterator of results; all else
        gives a list.

        Raises:
            TypeError: an item is not a string, or an argument is unknown; the message says what to write.
            ValueError: ``top_k`` or ``function_to_apply`` has a wrong value.
        """
        if isinstance(inputs, str):
            return super().__call__(inputs, **kwargs)
        if isinstance(inputs, Iterator | torch.utils.data.Dataset):
            return super().__call__(cast(Any, iterate_texts(inputs)), **kwargs)
        texts = check_texts(inputs)
        return super().__call__(texts, **kwargs) if texts else []

    def _sanitize_parameters(self, **parameters: Any) -> tuple[dict[str, Any], ...]:  # type: ignore[override]  # names all
        known = {name: parameters.pop(name) for name in ("top_k", "function_to_apply") if name in parameters}
        odd = sorted(name for name in parameters if name not in _WITHOUT_EFFECT)
        refuse_arguments(odd, PIPELINE_REMEDIES, "top_k, function_to_apply, batch_size, num_workers and device")
        if "top_k" in known:
            known["top_k"] = read_top_k(known["top_k"])
        function = known.get("function_to_apply")
        if function is not None and str(getattr(function, "value", function)).lower() not in _FUNCTIONS:
            raise ValueError(f"function_to_apply is {function!r:.80}. Remedy: use {', '.join(_FUNCTIONS)}")
        return super()._sanitize_parameters(**known)

    def check_model_type(self, supported_models: Any) -> None:
        """Accept the model: the list has only transformers' own models."""

    def preprocess(self, inputs: str | list[str]) -> dict[str, Features]:  # type: ignore[override]  # not a tokenizer's output
        """One text, or a batch of them, as ``{"features": …}``."""
        return {"features": self._classifier.features(inputs)}

    def _forward(self, model_inputs: dict[str, Features]) -> dict[str, torch.Tensor]:  # type: ignore[override]
        features = model_inputs["features"]
        return {"logits": torch.from_numpy(predict_logits(self.model, features, self._classifier.batch_size))}

    def get_iterator(  # the parent's needs a tokenizer to make batches
        self,
        inputs: Iterable[str],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Yield results one by one, computed batch by batch on demand."""
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is {batch_size!r:.80}. Remedy: use a whole number from 1")
        texts = iter(inputs)
        while batch := list(itertools.islice(texts, batch_size)):
            logits = self.forward(self.preprocess(batch, **preprocess_params), **forward_params)["logits"]
            yield from (self.postprocess({"logits": row[None]}, **postprocess_params) for row in logits)
