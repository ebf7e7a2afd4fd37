"""What transformers' classes offer and a package does not: each such name is refused, with the remedy."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)

COPY = "copy the package's folder; after training, export the run with hub_release export"
_PUBLISH = "publish the package's folder: hub_release push FOLDER USER/MODEL, or hf upload USER/MODEL FOLDER"
_ADAPTER = "load the model with fuse=False and use model.backbone, a PeftModel unless the package is merged"
_FROZEN = "leave it out: the backbone is frozen, and used as its makers published it"
_SETTLED = "leave it out: how the backbone computes is settled when it is loaded"
_CHECKPOINTING = "call it on model.backbone"

REFUSED_METHODS = {
    "push_to_hub": _PUBLISH,
    "save_distributed_checkpoint": COPY,
    "activation_checkpointing_enable": _CHECKPOINTING,
    "activation_checkpointing_disable": _CHECKPOINTING,
    "gradient_checkpointing_enable": _CHECKPOINTING,
    "gradient_checkpointing_disable": _CHECKPOINTING,
    "active_adapters": _ADAPTER,
    "add_adapter": _ADAPTER,
    "delete_adapter": _ADAPTER,
    "disable_adapters": _ADAPTER,
    "enable_adapters": _ADAPTER,
    "enable_peft_hotswap": _ADAPTER,
    "get_adapter_state_dict": _ADAPTER,
    "load_adapter": _ADAPTER,
    "set_adapter": _ADAPTER,
    "get_position_embeddings": _FROZEN,
    "resize_position_embeddings": _FROZEN,
    "resize_token_embeddings": _FROZEN,
    "set_decoder": _FROZEN,
    "set_encoder": _FROZEN,
    "set_input_embeddings": _FROZEN,
    "set_output_embeddings": _FROZEN,
    "dequantize": "load the model with quantization='none'",
    "set_attn_implementation": _SETTLED,
    "set_experts_implementation": _SETTLED,
    "set_use_kernels": _SETTLED,
    "get_compiled_call": "call the model itself: it classifies and generates nothing",
}
"""Methods of ``PreTrainedModel`` that would fail on a package, do nothing, or write what cannot be loaded."""

REFUSED_PIPELINE_METHODS = {"save_pretrained": COPY, "push_to_hub": _PUBLISH}

LOADING_REMEDIES = {
    "attn_implementation": _SETTLED,
    "device_map": "use device, for example device='cuda'",
    "load_in_4bit": "use quantization='nf4'",
    "load_in_8bit": "use quantization='8bit'",
    "quantization_config": "use quantization='nf4' or quantization='8bit'",
    "state_dict": "leave it out: the weights are the package's own",
    "subfolder": "download the repository and give the path of the folder",
    "torch_dtype": "use dtype",
}
"""Options of ``from_pretrained`` that a package does not take, but has something instead of."""

PIPELINE_REMEDIES = {
    "exclude_unreliable": "use EmotionClassifier(…).predict(texts, exclude_unreliable=True)",
    "max_length": "leave it out: a text too long for one window is read in several",
    "return_all_scores": "use top_k=None",
    "threshold": "use EmotionClassifier(…).predict(texts, threshold=…)",
}
"""The same for the pipeline's arguments."""


def refusal(name: str, remedy: str) -> NotImplementedError:
    """The error of a method that a package does not have."""
    return NotImplementedError(f"a package has no {name}. Remedy: {remedy}")


def refuse(remedies: Mapping[str, str]) -> Callable[[Class], Class]:
    """Decorate a class so that its methods of these names raise :func:`refusal`."""

    def decorate(decorated: Class) -> Class:
        for name, remedy in remedies.items():
            setattr(decorated, name, _refused(name, remedy))
        return decorated

    return decorate


def _refused(name: str, remedy: str) -> Callable[..., None]:
    def refused(*_: Any, **__: Any) -> None:
        raise refusal(name, remedy)

    return refused


def refuse_arguments(names: list[str], remedies: Mapping[str, str], accepted: str) -> None:
    """Refuse the first of ``names``, if there is one.

    Raises:
        TypeError: the message names it and what to write instead.
    """
    for name in names:
        raise TypeError(f"a package does not take {name}. Remedy: {remedies.get(name, f'give only {accepted}')}")
