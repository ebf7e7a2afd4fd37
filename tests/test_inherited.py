"""Every public method and argument that a package inherits from transformers works, or refuses with the remedy.

The tables name a decision for each. A name that a later transformers adds fails these tests until somebody decides.
"""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
    TextClassificationPipeline,
    pipeline,
)

from modeling.infer import EmotionClassifier, EmotionConfig, EmotionModel, EmotionPipeline
from modeling.infer.inherited import (
    LOADING_REMEDIES,
    PIPELINE_REMEDIES,
    REFUSED_METHODS,
    REFUSED_PIPELINE_METHODS,
)
from tests.conftest import EMBED_DIM, LABELS
from tests.test_texts import tiny_model

TEXTS = ["sunny cake", "dark cellar"]


def public_names(*classes: type) -> set[str]:
    """Names that classes define themselves, and their parents up to ``nn.Module``."""
    lines = {parent for part in classes for parent in part.__mro__} - {nn.Module, object}
    return {name for parent in lines for name in vars(parent) if not name.startswith("_")}


# Methods of the model

INTERNAL = {
    "barrier_after_gathered_checkpoint_save",
    "base_model_prefix",
    "can_record_outputs",
    "config_class",
    "ep_plan",
    "fsdp_plan",
    "fsdp_size",
    "generation_config_class",
    "get_correct_attn_implementation",
    "get_correct_experts_implementation",
    "get_expanded_tied_weights_keys",
    "get_experts_implementation",
    "gather_sharded_state_dict_for_save",
    "get_init_context",
    "get_parameter_or_buffer",
    "init_parallel_plans",
    "init_weights",
    "initialize_weights",
    "is_backend_compatible",
    "is_custom_code",
    "is_distributed_loading_by_transformers",
    "is_remote_code",
    "mark_tied_weights_as_initialized",
    "maybe_distribute_model",
    "model_tags",
    "named_non_persistent_buffers",
    "pp_plan",
    "post_init",
    "prepare_distribute_model",
    "retrieve_modules_from_names",
    "should_save_on_this_rank",
    "supports_context_parallel",
    "supports_pp_plan",
    "supports_tp_plan",
    "tie_weights",
    "tp_plan",
    "tp_size",
    "use_kernels",
    "warn_if_padding_and_no_attention_mask",
    "get_decoder",
    "get_encoder",
    "get_output_embeddings",
    "enable_input_require_grads",
    "disable_input_require_grads",
}
"""What transformers and PEFT call themselves; a user has no reason to."""


def _forward(model: EmotionModel) -> torch.Tensor:
    dtype = model.classifier.weight.dtype
    return model(**{k: v.to(dtype) if v.is_floating_point() else v for k, v in model.dummy_inputs.items()}).logits


def _changes_precision(change: Callable[[Any], Any]) -> Callable[[EmotionModel], bool]:
    return lambda model: bool(_forward(change(model)).isfinite().all())


def _refuses(call: Callable[[], Any], error: type[Exception] | tuple[type[Exception], ...], said: str) -> bool:
    with pytest.raises(error, match=re.escape(said)):
        call()
    return True


WORKS: dict[str, Callable[[EmotionModel], Any]] = {
    "add_model_tags": lambda model: model.add_model_tags("emotions") is None and model.model_tags,
    "base_model": lambda model: model.base_model is model.backbone,
    "can_generate": lambda model: model.can_generate() is False,
    "cuda": lambda model: torch.cuda.is_available() or _refuses(model.cuda, (AssertionError, RuntimeError), "CUDA"),
    "device": lambda model: model.device == torch.device("cpu"),
    "dtype": lambda model: model.dtype == torch.float32,
    "dummy_inputs": lambda model: _forward(model).shape == (3, len(LABELS)),
    "eval": lambda model: not model.eval().training,
    "float": _changes_precision(lambda model: model.float()),
    "from_pretrained": lambda model: True,  # the tests of its arguments are below
    "get_input_embeddings": lambda model: (
        isinstance(model.get_input_embeddings(), nn.Embedding)
        if model.config.reads_words
        else _refuses(model.get_input_embeddings, NotImplementedError, "Remedy: give the model embeddings")
    ),
    "get_memory_footprint": lambda model: model.get_memory_footprint() >= 4 * model.num_parameters(),
    "half": _changes_precision(lambda model: model.half()),
    "input_modalities": lambda model: model.input_modalities in ("text", ("text",)),
    "is_activation_checkpointing": lambda model: not model.is_activation_checkpointing,
    "is_gradient_checkpointing": lambda model: not model.is_gradient_checkpointing,
    "loss_function": lambda model: torch.isfinite(
        model.loss_function(torch.ones(1, 3), torch.zeros(1, 3), model.config)
    ),
    "main_input_name": lambda model: model.main_input_name in model.dummy_inputs,
    "num_parameters": lambda model: model.num_parameters() >= sum(p.numel() for p in model.classifier.parameters()),
    "register_for_auto_class": lambda model: callable(type(model).register_for_auto_class),
    "save_pretrained": lambda model: _refuses(lambda: model.save_pretrained("x"), NotImplementedError, "Remedy: copy"),
    "supports_gradient_checkpointing": lambda model: not model.supports_gradient_checkpointing,
    "to": _changes_precision(lambda model: model.to(torch.bfloat16)),
    "train": lambda model: model.train().training,
}


def test_each_method_of_a_model_has_one_decision() -> None:
    names = public_names(PreTrainedModel)
    decided = [*INTERNAL, *WORKS, *REFUSED_METHODS]
    assert len(names) > 80
    assert sorted(names - set(decided)) == [], "transformers has new names: decide what a package does with them"
    assert sorted(set(decided) - names) == [], "transformers has no such names"
    assert len(decided) == len(set(decided))


FORMS = {"one token": {}, "words": {"input": "tokens"}, "both": {"input": "hybrid", "prefix": "bos"}}


@pytest.mark.parametrize("name", WORKS)
@pytest.mark.parametrize("form", FORMS)
def test_what_works(name: str, form: str) -> None:
    assert WORKS[name](tiny_model(**FORMS[form])) is not False


@pytest.mark.parametrize("name", REFUSED_METHODS)
def test_a_refused_method_says_what_to_do(name: str) -> None:
    with pytest.raises(NotImplementedError, match=rf"^a package has no {name}\. Remedy: \w"):
        getattr(tiny_model(), name)("anything")


def test_checkpointing_works_where_the_remedy_says(package: Path) -> None:
    model = EmotionModel.from_pretrained(package).train()
    model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    model(torch.randn(2, model.config.embed_dim), labels=torch.ones(2, 3)).loss.backward()
    assert model.classifier.weight.grad is not None


def test_a_fused_model_counts_the_weights_that_it_computes_with(package: Path) -> None:
    fused, plain = EmotionClassifier(package).model, EmotionModel.from_pretrained(package)
    adapter = sum(p.numel() for name, p in plain.named_parameters() if "lora" in name)
    # By hand: norms are in the matrices that read them, and the two heads that share a value are summed in o_proj.
    whole, folded = plain.num_parameters() - adapter, 2 * (2 * 16 + 16 * 8)
    assert fused.num_parameters() == whole - folded
    assert fused.get_memory_footprint() >= 4 * fused.num_parameters()
    trained = sum(p.numel() for p in fused.parameters() if p.requires_grad)
    assert fused.num_parameters(only_trainable=True) == trained < fused.num_parameters()


# Saving


def test_a_baseline_that_save_pretrained_wrote_loads_again(tmp_path: Path) -> None:
    config = EmotionConfig(head="mlp", hidden_size=16, embed_dim=EMBED_DIM, emotion_labels=list(LABELS))
    model = EmotionModel(config).eval()
    model.save_pretrained(tmp_path)
    rows = torch.randn(3, EMBED_DIM)
    with torch.no_grad():
        torch.testing.assert_close(EmotionModel.from_pretrained(tmp_path)(rows).logits, model(rows).logits)


def test_nothing_is_written_that_cannot_be_loaded(package: Path, tmp_path: Path) -> None:
    for model in (EmotionModel.from_pretrained(package), EmotionClassifier(package).model):
        with pytest.raises(NotImplementedError, match="Remedy: copy the package's folder"):
            model.save_pretrained(tmp_path / "saved")
    pipe = EmotionPipeline(model=EmotionModel.from_pretrained(package), task="text-classification", device=-1)
    for name in REFUSED_PIPELINE_METHODS:
        with pytest.raises(NotImplementedError, match=rf"^a package has no {name}\. Remedy: "):
            getattr(pipe, name)(str(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()
    copy = shutil.copytree(package, tmp_path / "copy")  # the remedy
    np.testing.assert_array_equal(
        EmotionClassifier(copy).predict_proba(TEXTS), EmotionClassifier(package).predict_proba(TEXTS)
    )


# Arguments of from_pretrained

TAKEN = {"cache_dir": None, "config": None, "dtype": "float32", "force_download": False, "local_files_only": True}
TAKEN |= {"revision": None, "token": False, "trust_remote_code": True, "adapter_kwargs": None}
REFUSED = {
    "adapter_name",
    "allow_all_kernels",
    "device_mesh",
    "disable_mmap",
    "distributed_config",
    "experts_implementation",
    "fusion_config",
    "generation_config",
    "gguf_file",
    "ignore_mismatched_sizes",
    "kernel_config",
    "key_mapping",
    "max_memory",
    "offload_buffers",
    "offload_folder",
    "output_loading_info",
    "proxies",
    "tp_plan",
    "tp_size",
    "tqdm_class",
    "use_kernels",
    "use_safetensors",
    "variant",
    "weights_only",
} | (set(LOADING_REMEDIES) - {"load_in_4bit", "load_in_8bit"})


def names_of_from_pretrained() -> set[str]:
    """Parameters by name, and those that it takes from ``**kwargs``."""
    names = set(inspect.signature(PreTrainedModel.from_pretrained).parameters)
    source = inspect.getsource(PreTrainedModel.from_pretrained)
    names |= set(re.findall(r'kwargs\.(?:pop|get)\(\s*"(\w+)"', source))
    return {name for name in names if not name.startswith("_")} - {
        "pretrained_model_name_or_path",
        "model_args",
        "kwargs",
    }


def test_each_argument_of_from_pretrained_has_one_decision() -> None:
    names = names_of_from_pretrained()
    assert len(names) > 30
    assert sorted(names - set(TAKEN) - REFUSED) == [], "transformers has new arguments: decide about them"
    assert sorted((set(TAKEN) | REFUSED) - names) == [] and not set(TAKEN) & REFUSED


def test_arguments_that_are_taken(package: Path) -> None:
    expected = EmotionModel.from_pretrained(package).state_dict()
    found = EmotionModel.from_pretrained(package, **TAKEN).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", sorted(REFUSED | set(LOADING_REMEDIES) | {"anything_else"}))
def test_arguments_that_are_refused(package: Path, name: str) -> None:
    remedy = re.escape(LOADING_REMEDIES.get(name, "give only config, dtype, device"))
    with pytest.raises(TypeError, match=rf"^a package does not take {name}\. Remedy: {remedy}"):
        EmotionModel.from_pretrained(package, **{name: True})


@pytest.mark.parametrize("dtype", ["int8", torch.int64, "float17", "nn", 7])
def test_a_wrong_dtype(package: Path, dtype: Any) -> None:
    with pytest.raises(ValueError, match=r"^dtype is .*Remedy: use float32, bfloat16 or float16"):
        EmotionModel.from_pretrained(package, dtype=dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "torch.float16", "auto", None])
def test_a_dtype_is_taken(package: Path, dtype: Any) -> None:
    backbone = EmotionModel.from_pretrained(package, dtype=dtype).backbone
    name = "float32" if dtype in ("auto", None) else str(dtype).removeprefix("torch.")
    assert str(backbone.layers[0].mlp.up_proj.base_layer.weight.dtype) == f"torch.{name}"


OTHER_LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
CHANGED: dict[str, Any] = {
    "num_labels": 5,
    "id2label": OTHER_LABELS["id2label"],
    "label2id": OTHER_LABELS["label2id"],
    "emotion_labels": ["a", "b", "c"],
    "hidden_size": 32,
    "pooling": "mean",
    "encoder": "minilm",
    "output_hidden_states": True,
    "return_dict": False,
    "attn_implementation": "eager",
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_configuration_of_another_model_is_refused(package: Path, name: str) -> None:
    """Through the Auto classes, which put an argument into the configuration."""
    with pytest.raises(ValueError, match=r"but the package has .*Remedy: leave \w+ out"):
        config = AutoConfig.from_pretrained(package, trust_remote_code=True, **{name: CHANGED[name]})
        EmotionModel.from_pretrained(package, config=_ours(config, package))


def _ours(config: Any, package: Path) -> EmotionConfig:
    """The same configuration, as this project's class: the Auto classes load the package's own copy of it."""
    found = EmotionConfig.from_pretrained(package)
    for name in {*CHANGED, "_attn_implementation"} - {"attn_implementation", "num_labels"}:
        setattr(found, name, getattr(config, name))
    return found


def test_the_auto_classes_refuse_too(package: Path) -> None:
    for arguments, said in (
        ({"num_labels": 5}, "Remedy: leave"),
        ({"attn_implementation": "eager"}, "Remedy: leave attn_implementation out"),
        ({"quantization_config": BitsAndBytesConfig(load_in_4bit=True)}, "Remedy: use quantization='nf4'"),
        ({"device_map": "auto"}, "Remedy: use device"),
        ({"thresholds": {"hope": 0.5}}, "unknown labels in threshold: hope. Remedy: "),
        ({"thresholds": {"joy": 5}}, "threshold of joy is 5. Remedy: "),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(said)):
            AutoModelForSequenceClassification.from_pretrained(package, trust_remote_code=True, **arguments)
    load = AutoModelForSequenceClassification.from_pretrained
    model = load(package, trust_remote_code=True, thresholds={"joy": 0.25}, windows="max", dtype="bfloat16")
    assert model.config.thresholds == {"joy": 0.25} and model.config.windows == "max"
    with pytest.raises(TypeError, match=r"config is .*Remedy: leave it out"):
        EmotionModel.from_pretrained(package, config="config.json")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="does not take a second positional argument"):
        EmotionModel.from_pretrained(package, "more")


# The pipeline

PIPELINE_INTERNAL = {
    "check_model_type",
    "default_input_names",
    "device_placement",
    "ensure_tensor_on_device",
    "forward",
    "function_to_apply",
    "get_inference_context",
    "get_iterator",
    "postprocess",
    "preprocess",
    "run_single",
}
PIPELINE_WORKS: dict[str, Callable[[EmotionPipeline], Any]] = {
    "dtype": lambda pipe: pipe.dtype == torch.float32,
    "torch_dtype": lambda pipe: pipe.torch_dtype == torch.float32,
    "predict": lambda pipe: pipe.predict(TEXTS) == pipe(TEXTS),
    "transform": lambda pipe: pipe.transform(TEXTS) == pipe(TEXTS),
}
LOADED_WITH = {"task", "model", "config", "revision", "use_fast", "token", "dtype", "trust_remote_code", "model_kwargs"}
"""Arguments of ``pipeline()`` that transformers uses before there is a pipeline, or passes to ``from_pretrained``."""
MOVED = {"device": "cpu", "pipeline_class": EmotionPipeline}
PARTS = {"tokenizer", "feature_extractor", "image_processor", "video_processor", "processor"}


@pytest.fixture(scope="module")
def pipe() -> EmotionPipeline:
    from tests.conftest import fake_encoder

    made = EmotionPipeline(model=tiny_model(), task="text-classification", device=-1)
    made._classifier = EmotionClassifier.from_model(made.model, encoder=fake_encoder)
    return made


def test_each_name_of_the_pipeline_has_one_decision() -> None:
    names = public_names(TextClassificationPipeline)
    decided = {*PIPELINE_INTERNAL, *PIPELINE_WORKS, *REFUSED_PIPELINE_METHODS}
    assert len(names) > 15
    assert sorted(names ^ decided) == [], "transformers has other names: decide about them"
    arguments = set(inspect.signature(pipeline).parameters) - {"kwargs"}
    decided = {*LOADED_WITH, *MOVED, *PARTS, "device_map"}
    assert sorted(arguments ^ decided) == [], "pipeline() has other arguments: decide about them"


@pytest.mark.parametrize("name", PIPELINE_WORKS)
def test_what_works_of_the_pipeline(pipe: EmotionPipeline, name: str) -> None:
    assert PIPELINE_WORKS[name](pipe)


@pytest.mark.parametrize("name", [*PIPELINE_REMEDIES, "stride", "return_tensors", "text_pair"])
def test_arguments_that_the_pipeline_refuses(pipe: EmotionPipeline, name: str) -> None:
    remedy = re.escape(PIPELINE_REMEDIES.get(name, "give only top_k, function_to_apply"))
    for call in (lambda: pipe(TEXTS, **{name: 1}), lambda: EmotionPipeline(model=pipe.model, device=-1, **{name: 1})):
        with pytest.raises(TypeError, match=rf"^a package does not take {name}\. Remedy: {remedy}"):
            call()


@pytest.mark.parametrize("name", sorted(PARTS))
def test_parts_that_the_pipeline_refuses(pipe: EmotionPipeline, name: str) -> None:
    with pytest.raises(TypeError, match=rf"does not take {name}\. Remedy: leave it out"):
        EmotionPipeline(model=pipe.model, device=-1, **{name: object()})


def test_arguments_that_the_pipeline_takes(pipe: EmotionPipeline) -> None:
    everything = pipe(TEXTS, top_k=None)
    for arguments in (
        {"truncation": True},
        {"padding": "max_length"},
        {"batch_size": 2},
        {"num_workers": 2},
        {"function_to_apply": "sigmoid"},
    ):
        found = pipe(TEXTS, top_k=None, **arguments)
        for row, expected in zip(found, everything, strict=True):
            assert [entry["label"] for entry in row] == [entry["label"] for entry in expected]
            np.testing.assert_allclose(
                [entry["score"] for entry in row], [entry["score"] for entry in expected], atol=1e-6
            )
    assert pipe(TEXTS, top_k=np.int64(2)) == [row[:2] for row in everything]
    logits = pipe(TEXTS, top_k=None, function_to_apply="none")
    sums = [sum(entry["score"] for entry in row) for row in pipe(TEXTS, top_k=None, function_to_apply="softmax")]
    for row, expected in zip(logits, everything, strict=True):
        found = 1 / (1 + np.exp(-np.array([entry["score"] for entry in row])))
        np.testing.assert_allclose(found, [entry["score"] for entry in expected], atol=1e-6)
    np.testing.assert_allclose(sums, [1, 1], atol=1e-6)
    assert pipe(TEXTS)[0] == everything[0][0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"top_k": 0}, "top_k is 0. Remedy"),
        ({"top_k": "3"}, "top_k is '3'. Remedy"),
        ({"top_k": True}, "top_k is True. Remedy"),
        ({"function_to_apply": "tanh"}, "function_to_apply is 'tanh'. Remedy: use sigmoid, softmax, none"),
        ({"batch_size": 0}, "batch_size is 0. Remedy"),
        ({"batch_size": "4"}, "batch_size is '4'. Remedy"),
    ],
)
def test_wrong_values_for_the_pipeline(pipe: EmotionPipeline, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        pipe(TEXTS, **arguments)


@pytest.mark.parametrize("task", ["zero-shot-classification", "feature-extraction", "text-generation"])
def test_another_task_is_refused(package: Path, task: str) -> None:
    with pytest.raises(ValueError, match=r"Remedy: use pipeline\('text-classification'"):
        pipeline(task, model=str(package), trust_remote_code=True)


def test_the_other_name_of_text_classification(package: Path) -> None:
    expected = pipeline("text-classification", model=str(package), trust_remote_code=True)
    found = pipeline("sentiment-analysis", model=str(package), trust_remote_code=True)
    assert type(found).__name__ == "EmotionPipeline" and found(TEXTS) == expected(TEXTS)


def test_the_task_may_be_left_out(package: Path) -> None:
    found = pipeline(model=str(package), trust_remote_code=True)
    assert type(found).__name__ == "EmotionPipeline" and len(found(TEXTS)) == 2
    with pytest.raises(ValueError, match="Remedy: use device"):
        pipeline(model=str(package), trust_remote_code=True, device_map="auto")
