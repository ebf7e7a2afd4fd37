"""Weights of a package, read as data."""

import io
import math
import pickletools
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load

from modeling.infer.config import EmotionConfig
from modeling.infer.errors import PackageError, as_package_error
from modeling.infer.files import open_limited, read_bytes
from modeling.infer.heads import build_heads

HEAD_FILES = ("head.safetensors", "head_weights.pt")
BASELINE_FILE = "model.safetensors"
"""All weights of a model without a backbone, as ``save_pretrained`` writes them."""
_ENTRY_OF_TORCH = (
    r"([^/]+)/(?:data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id)"
)
_GLOBAL_OF_TENSORS = r"torch\._utils _rebuild_(?:tensor_v2|parameter)|collections OrderedDict|torch \w+Storage"
_MAX_PICKLE = 10_000
"""Operations; the pickle of a head has about 270."""
_MAX_HEADER_BYTES = 2**22
"""The header of a 24B model's adapter has 0.1 MB."""
_ACCEPTED_PRECISIONS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read_head(folder: Path, config: EmotionConfig) -> dict[str, torch.Tensor]:
    """The weights of the heads, under keys such as ``projection.0.weight``; no pickle is executed.

    Raises:
        PackageError: see :func:`read_head_file`; or the two files differ, or both are missing.
    """
    heads = [read_head_file(folder, name, config) for name in HEAD_FILES if (folder / name).exists()]
    if not heads:
        raise PackageError(" and ".join(HEAD_FILES), "are missing")
    refuse_different_heads(heads)
    return heads[0]


def refuse_different_heads(
    heads: Sequence[Mapping[str, torch.Tensor]], files: Sequence[str] = HEAD_FILES, what: str = "hold different weights"
) -> None:
    """Refuse files that hold different weights of the heads.

    Raises:
        PackageError: they differ.
    """
    # Bits, not values: a zero has two signs.
    bits = [{key: value.contiguous().view(torch.uint8) for key, value in head.items()} for head in heads]
    if any(not torch.equal(bits[0][key], bits[-1][key]) for key in bits[0]):
        raise PackageError(" and ".join(files), what)


def read_head_file(folder: Path, name: str, config: EmotionConfig) -> dict[str, torch.Tensor]:
    """The weights in one of :data:`HEAD_FILES` or in :data:`BASELINE_FILE`.

    Raises:
        PackageError: it is missing or damaged, holds anything other than plain tensors, or its names, shapes or values
            are not a head's.
    """
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in build_heads(config).state_dict().items()}
    content = read_bytes(folder, name, most_bytes(sum(map(math.prod, shapes.values()))))
    with as_package_error(name, "is damaged, or holds something other than plain tensors"):
        tensors = load_safetensors(content) if name.endswith(".safetensors") else _load_tensors_of_pickle(content)
    refuse_other_tensors(name, tensors, shapes)
    return tensors


def most_bytes(values: int) -> int:
    """The largest size of a file with this many values, in the widest precision that is accepted."""
    return values * torch.float64.itemsize + _MAX_HEADER_BYTES


def refuse_large_header(start: bytes) -> None:
    """Refuse a safetensors file that names far more tensors than a package has; a million take 20 s and 2 GB to read.

    Args:
        start: the file's content, or the start of it.

    Raises:
        ValueError: its header is larger than any package's.
    """
    if (size := int.from_bytes(start[:8], "little")) > _MAX_HEADER_BYTES:
        raise ValueError(f"the header has {size:,} bytes, more than {_MAX_HEADER_BYTES:,}")


def load_safetensors(content: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file whose header has a sane size."""
    refuse_large_header(content)
    return load(content)


def map_safetensors(folder: Path, name: str, most: int) -> dict[str, torch.Tensor]:
    """The tensors of a large safetensors file: views of the file, whose values are read when they are used.

    Raises:
        PackageError: it is missing, damaged, or has more than ``most`` bytes.
    """
    # This look only bounds what the next one reads. What is validated is what that one gives.
    with open_limited(folder, name, most) as (file, _):
        start = file.read(8)
    with as_package_error(name, "is damaged"):
        refuse_large_header(start)
        with safe_open(folder / name, framework="pt") as tensors:
            return {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118  # not a mapping


def _load_tensors_of_pickle(content: bytes) -> dict[str, torch.Tensor]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("compressed")  # torch.save never compresses, and expanding could fill the memory
        names = {match[0]: match[1] for entry in entries if (match := re.fullmatch(_ENTRY_OF_TORCH, entry.filename))}
        if len(names) < len(entries) or len(set(names.values())) != 1:
            raise ValueError("an entry appears twice, or is not one of torch.save's")
        _refuse_other_pickle(archive.read(f"{names.popitem()[1]}/data.pkl"))
    nested = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {f"{part}.{key}": value for part, weights in nested.items() for key, value in weights.items()}


def _refuse_other_pickle(content: bytes) -> None:
    """Refuse anything that dictionaries of tensors do not need.

    PyTorch's own list of harmless functions is longer. Hashing a tuple that is nested in others again and again never
    ends.
    """
    tuples: set[Any] = set()
    before = ""
    for number, (operation, argument, _) in enumerate(pickletools.genops(content)):
        name = operation.name
        if number > _MAX_PICKLE or (name == "GLOBAL" and not re.fullmatch(_GLOBAL_OF_TENSORS, str(argument))):
            raise ValueError("more than tensors")
        if "PUT" in name and before.startswith("TUPLE"):
            tuples.add(argument)
        elif ("GET" in name and argument in tuples) or name == "MEMOIZE":
            raise ValueError("a tuple that is used twice")
        before = name


def refuse_other_tensors(file: str, tensors: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse anything but plain finite tensors with these names and shapes.

    Raises:
        PackageError: the message names the file and the tensor.
    """
    for what, keys in (("lacks", set(shapes) - set(tensors)), ("has unknown", set(tensors) - set(shapes))):
        if keys:
            raise PackageError(file, f"{what} tensors: {', '.join(sorted(map(str, keys))[:3])} (of {len(keys)})")
    for key, tensor in tensors.items():
        if (
            not isinstance(tensor, torch.Tensor)
            or tensor.layout != torch.strided
            or tensor.is_meta
            or not tensor.is_contiguous()  # otherwise a few bytes could stand for more than fits in memory
        ):
            raise PackageError(file, f"does not hold a plain tensor under {key}")
        if tensor.shape != tuple(shapes[key]):
            raise PackageError(file, f"has {key} with shape {[*tensor.shape]}, not {[*shapes[key]]}")
        # Float8, for one, has no operators to look at it.
        if tensor.dtype not in _ACCEPTED_PRECISIONS or not tensor.isfinite().all():
            raise PackageError(file, f"has values in {key} that are not finite floating-point numbers")
