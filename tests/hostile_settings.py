"""More ways to damage a package: keys that lead elsewhere, sizes by word alone, tokenizers, links, compiled code."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.hostile_packages import (
    ADAPTER,
    ADAPTER_CONFIG,
    CONFIG,
    EMPTY,
    HEAD,
    PAYLOAD,
    Mutation,
    add,
    appending,
    case,
    edit,
    setting,
    tensors,
    writing,
)

TOKENIZER = "tokenizer.json"


# Keys by which a configuration makes a library read something else
@case(CONFIG)
def a_second_configuration(folder: Path) -> None:
    """Transformers reads the second file; what was validated is the first."""
    content = json.loads((folder / CONFIG).read_text())
    reversed_labels = content["emotion_labels"][::-1]
    other = content | {"emotion_labels": reversed_labels, "thresholds": dict.fromkeys(reversed_labels, -5.0)}
    other |= {"id2label": dict(enumerate(reversed_labels)), "label2id": {x: i for i, x in enumerate(reversed_labels)}}
    (folder / "config.4.0.0.json").write_text(json.dumps(other))
    setting(CONFIG, configuration_files=["config.4.0.0.json"])(folder)


for key, value in {
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "compression_config": {"quant_method": "compressed-tensors"},
    "transformers_weights": "evil.safetensors",
    "gguf_file": "evil.gguf",
    "_name_or_path": "evil/model",
    "base_model_name_or_path": "evil/model",
    "revision": "refs/pr/1",
    "_commit_hash": "0" * 40,
    "subfolder": "../evil",
    "tokenizer_class": "EvilTokenizer",
    "tokenizer_file": "../evil.json",
    "fast_tokenizer_files": ["tokenizer.4.0.json"],
    "processor_class": "EvilProcessor",
    "attribute_map": {"thresholds": "label2id"},
    "per_layer_config": {"0": {"hidden_size": 2}},
    "experts_implementation": "evil/kernel",
    "use_kernels": True,
    "kernel_config": {"RMSNorm": "evil/kernel:RMSNorm"},
    "to_dict": "a text in place of a method",
    "dtype": "load",
}.items():
    add(f"the key {key}", CONFIG, setting(CONFIG, **{key: value}))
add(
    "a kernel in the backbone",
    CONFIG,
    edit(CONFIG, lambda c: c["backbone_config"].update(_attn_implementation="evil/kernel")),
)
add("a pipeline of another repository", CONFIG, setting(CONFIG, custom_pipelines={"x": {"impl": "evil/x--a.B"}}))
add("an adapter of another revision", ADAPTER_CONFIG, setting(ADAPTER_CONFIG, revision="refs/pr/1"))
add("an adapter with its own loader", ADAPTER_CONFIG, setting(ADAPTER_CONFIG, loftq_config={"loftq_bits": 4}))
add("an adapter with a parent class", ADAPTER_CONFIG, setting(ADAPTER_CONFIG, auto_mapping={"parent_library": "os"}))
add("an adapter of layers repeated", ADAPTER_CONFIG, setting(ADAPTER_CONFIG, layer_replication=[[0, 10**6]]))
add("an adapter with an overflowing scale", ADAPTER_CONFIG, setting(ADAPTER_CONFIG, lora_alpha=1e308))
add(
    "an adapter configuration at the top",
    "adapter_config.json",
    writing("adapter_config.json", b'{"base_model_name_or_path": "evil/model", "peft_type": "LORA"}'),
    True,
)


# What the training rows look like, by which a batch is judged
for name, ends in {
    "one number": [3.0],
    "three numbers": [3, 4, 5],
    "nothing": [0, 4.0],
    "less than nothing": [-4.0, 4.0],
    "an empty range": [5.0, 3.0],
    "no number": [float("nan"), float("nan")],
    "no end": [1.0, float("inf")],
    "texts": ["3", "4"],
    "a text": "3 to 4",
}.items():
    add(f"tokens of {name}", CONFIG, setting(CONFIG, characters_per_token=ends), words=True)
add("tokens without a tokenizer", CONFIG, setting(CONFIG, characters_per_token=[3.0, 4.0]))


# Sizes by word alone
def in_the_backbone(**settings: Any) -> Mutation:
    return edit(CONFIG, lambda content: content["backbone_config"].update(settings))


rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 10**5, "long_factor": [1.0] * 10**5}
add("a rope of a hundred thousand factors", CONFIG, in_the_backbone(rope_parameters=rope))
add("a list of layer types without end", CONFIG, in_the_backbone(layer_types=["full_attention"] * 10**5))
add("a vocabulary of 2^40", CONFIG, in_the_backbone(vocab_size=2**40))
add("a vocabulary that is a list", CONFIG, in_the_backbone(vocab_size=[32]))
add("layers as a fraction", CONFIG, in_the_backbone(num_hidden_layers=1.5))
add("a backbone of many empty lists", CONFIG, in_the_backbone(note=[[] for _ in range(10**5)]))


def named_backbone(recorded: bool, **settings: Any) -> Mutation:
    """Name a backbone on this machine whose weights have 38 GB (of zeros: the file takes no space)."""

    def mutate(folder: Path) -> None:
        other = folder.parent / "named"
        other.mkdir()
        content = json.loads((folder / CONFIG).read_text())
        large = content["backbone_config"] | settings
        (other / "config.json").write_text(json.dumps(large))
        (other / "model.safetensors").touch()
        os.truncate(other / "model.safetensors", 38 * 10**9)
        content["model_name"] = str(other)
        if recorded:
            content["backbone_config"] = large
        (folder / CONFIG).write_text(json.dumps(content))
        setting(ADAPTER_CONFIG, base_model_name_or_path=str(other))(folder)

    return mutate


add("a named backbone of 38 GB", CONFIG, named_backbone(False, intermediate_size=2**20, num_hidden_layers=200))
add(
    "a named backbone of 500 GB, as recorded",
    CONFIG,
    named_backbone(True, intermediate_size=2**20, num_hidden_layers=256),
)
add("a named backbone with a million layers", CONFIG, named_backbone(False, num_hidden_layers=10**6))
add("a named backbone with a billion labels", CONFIG, named_backbone(False, num_labels=10**9))
add("a named backbone of zeros", CONFIG, named_backbone(False))
add(
    "a named backbone with a second configuration",
    CONFIG,
    named_backbone(False, configuration_files=["config.4.0.0.json"]),
)

# Tensors
for precision in (torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64):
    kind = str(precision).removeprefix("torch.")
    change: Callable[[dict[str, torch.Tensor]], Any]
    change = lambda t, precision=precision: t.update({"classifier.bias": torch.zeros(3).to(precision)})  # noqa: E731
    add(f"a head in {kind}", HEAD, tensors(HEAD, change))
    change = lambda t, precision=precision: t.update({max(t): t[max(t)].to(precision)})  # noqa: E731
    add(f"an adapter in {kind}", ADAPTER, tensors(ADAPTER, change))
add("a head of a gibibyte", HEAD, lambda folder: os.truncate(folder / HEAD, 2**30))
add("an adapter of a gibibyte", ADAPTER, lambda folder: os.truncate(folder / ADAPTER, 2**30))
add("an adapter larger than any", ADAPTER, lambda folder: os.truncate(folder / ADAPTER, 2**35))
add("a header of many tensors in the adapter", ADAPTER, writing(ADAPTER, len(EMPTY).to_bytes(8, "little") + EMPTY))


def header(content: Any, data: bytes = b"") -> bytes:
    packed = json.dumps(content).encode()
    return len(packed).to_bytes(8, "little") + packed + data


odd = {"dtype": "F32", "shape": [2**32, 2**32, 2**32], "data_offsets": [0, 0]}
add("a shape that overflows", HEAD, writing(HEAD, header({"a": odd})))
add("a tensor with a negative place", ADAPTER, writing(ADAPTER, header({"a": odd | {"data_offsets": [-4, 0]}})))
same = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
add("tensors that share their bytes", HEAD, writing(HEAD, header({"a": same, "b": same}, bytes(4))))
add("a header that is a list", ADAPTER, writing(ADAPTER, header([1, 2])))


# Tokenizers
def in_the_tokenizer(change: Callable[[dict[str, Any]], Any]) -> Mutation:
    return edit(TOKENIZER, change)


def with_part(section: str, *parts: dict[str, Any]) -> Mutation:
    inner = "normalizers" if section == "normalizer" else "pretokenizers"
    whole = parts[0] if len(parts) == 1 else {"type": "Sequence", inner: list(parts)}
    return in_the_tokenizer(lambda content: content.update({section: whole}))


def with_model(**settings: Any) -> Mutation:
    return in_the_tokenizer(lambda content: content.update(model=settings))


GROW = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
NEVER = {"Regex": r"(a+)+$"}
for name, mutate in {
    "a text that doubles": with_part("normalizer", GROW),
    "a text that doubles forty times": with_part("normalizer", *[GROW] * 40),
    "a letter that becomes a million": with_part("normalizer", GROW | {"content": "a" * 10**6}),
    "a replacement between all letters": with_part("normalizer", GROW | {"pattern": {"String": ""}}),
    "a prefix of a million letters": with_part("normalizer", {"type": "Prepend", "prepend": "a" * 10**6}),
    "a replacement by a pattern": with_part("normalizer", GROW | {"pattern": NEVER}),
    "a normalizer that panics": with_part("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "a normalizer that does not exist": with_part("normalizer", {"type": "Evil"}),
    "a normalizer that is a number": in_the_tokenizer(lambda content: content.update(normalizer=7)),
    "a split that never ends": with_part(
        "pre_tokenizer", {"type": "Split", "pattern": NEVER, "behavior": "Isolated", "invert": False}
    ),
    "a split by a list": with_part(
        "pre_tokenizer", {"type": "Split", "pattern": {"Regex": ["a"]}, "behavior": "Isolated", "invert": False}
    ),
    "a split by nothing": with_part(
        "pre_tokenizer", {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False}
    ),
    "pieces without length": with_part("pre_tokenizer", {"type": "FixedLength", "length": 0}),
    "a hundred splits": with_part("pre_tokenizer", *[{"type": "WhitespaceSplit"}] * 100),
    "a word with two letters for a space": with_part(
        "pre_tokenizer", {"type": "Metaspace", "replacement": "ab", "prepend_scheme": "always", "split": True}
    ),
    "a sequence without parts": with_part("pre_tokenizer", {"type": "Sequence"}),
    "a unigram without words": with_model(type="Unigram", vocab=[], unk_id=0),
    "a unigram of one": with_model(type="Unigram", vocab=[["a", 1e308]], unk_id=2**31),
    "word pieces": with_model(type="WordPiece", vocab={"a": 0}, unk_token="a", max_input_chars_per_word=2**40),
    "words without an unknown one": with_model(type="WordLevel", vocab={"a": 0}, unk_token="b"),
    "merges of unknown parts": with_model(type="BPE", vocab={"a": 0}, merges=[["b", "c"]]),
    "tokens by chance": with_model(type="BPE", vocab={"a": 0}, merges=[], dropout=0.5),
    "a long ending of words": with_model(type="BPE", vocab={"a": 0}, merges=[], end_of_word_suffix="a" * 10**6),
    "a token beyond the vocabulary": with_model(type="BPE", vocab={"a": 2**32 - 1}, merges=[]),
    "a token with a negative number": with_model(type="BPE", vocab={"a": -1}, merges=[]),
    "a model without a type": with_model(vocab={"a": 0}, merges=[]),
    "no model": in_the_tokenizer(lambda content: content.pop("model")),
    "an added token without letters": in_the_tokenizer(
        lambda content: content.update(added_tokens=[{"id": 0, "content": "", "special": True}])
    ),
    "added tokens that are numbers": in_the_tokenizer(lambda content: content.update(added_tokens=[1, 2])),
    "a tokenizer of brackets": writing(TOKENIZER, b"[" * 10**6),
    "a tokenizer of many lists": writing(TOKENIZER, b'{"a": [' + b"[]," * 5 * 10**6 + b"[]]}"),
    "a tokenizer larger than any": lambda folder: os.truncate(folder / TOKENIZER, 2**25 + 1),
}.items():
    add(name, TOKENIZER, mutate, words=True)

# Links, folders and compiled code
add("a link to a folder of the package", "more", lambda folder: (folder / "more").symlink_to("lora_adapter"))
add("a link to the package itself", "self", lambda folder: (folder / "self").symlink_to("."))


@case("deep/deep")
def folders_in_folders_in_folders(folder: Path) -> None:
    here = Path.cwd()
    os.chdir(folder)
    for _ in range(1_500):  # longer than a path may be
        Path("deep").mkdir()
        os.chdir("deep")
    os.chdir(here)


def compiled(flags: int) -> Mutation:
    """Compiled code that Python would run in place of ``infer.py`` without a look at it."""
    code = importlib.util.MAGIC_NUMBER + flags.to_bytes(4, "little") + bytes(8) + PAYLOAD.encode()
    return writing("__pycache__/infer.cpython-311.pyc", code)


add("compiled code that nothing compares", "__pycache__", compiled(0b01), True)
add("compiled code that is compared by hash", "__pycache__", compiled(0b11), True)
add("a link to compiled code", "__pycache__", lambda folder: (folder / "__pycache__").symlink_to("lora_adapter"))
add("a handler in a folder", "code/handler.py", writing("code/handler.py", PAYLOAD.encode()), True)
add("code after the code", "infer.py", appending("infer.py", "\n"), True)


@case(HEAD)
def a_head_of_another_order(folder: Path) -> None:
    """The same numbers, transposed twice: the shapes fit, and only the other file tells."""
    content = load_file(folder / HEAD)
    key = "projection.2.weight"
    save_file(content | {key: content[key].flip(0).contiguous()}, folder / HEAD)
