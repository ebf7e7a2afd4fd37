"""A backbone that reads words: padding, batches, both attentions, pooling, windows, and whole runs."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralModel,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    pipeline,
)

from hub_release.check.gate import check
from hub_release.export import export
from hub_release.package import seal
from modeling.adapters import attach_lora
from modeling.backbones import hold_bfloat16, load_frozen_backbone, read_tokenizer, restore_float32
from modeling.infer import (
    BUNDLED_BACKBONE,
    EmotionClassifier,
    EmotionConfig,
    EmotionModel,
    Features,
    PackageError,
    at_most,
    bundled_tokenizer,
    cut_into_windows,
    load_backbone,
    predict_logits,
    to_tensors,
    tokenize,
)
from modeling.recipe import choices
from tests.conftest import EMBED_DIM, LABELS, tiny_config, tiny_flags, tiny_tokenizer, write_corpus
from training.commands.evaluate import load_classifier
from training.corpora import Corpora
from training.data import encoding
from training.data.encoding import tokenize_rows
from training.fit.prepare import prepare
from training.options import parse
from training.recipe import RecipeError
from training.run import main
from training.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("pixels")

CASES = [
    {"input": reads, "pooling": pooling, "attention": attention, "prefix": prefix}
    for reads in ("tokens", "hybrid")
    for pooling in choices("pooling")
    for attention in choices("attention")
    for prefix in ("none", "bos")
]


def build(backbone: torch.nn.Module | None = None, **settings: Any) -> EmotionModel:
    torch.manual_seed(0)
    backbone = backbone or MistralModel(tiny_config())
    config = EmotionConfig(hidden_size=16, embed_dim=EMBED_DIM, emotion_labels=list(LABELS), **settings)
    return EmotionModel(config, backbone).eval()


def features(sizes: list[int], seed: int = 0) -> Features:
    generator = np.random.default_rng(seed)
    tokens = [generator.integers(3, 32, size=size) for size in sizes]
    return Features(generator.normal(size=(len(sizes), EMBED_DIM)).astype(np.float32), tokens)


@torch.no_grad()
def logits(model: EmotionModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    if not model.config.reads_embedding:
        batch = {name: tensor for name, tensor in batch.items() if name != "embeddings"}
    return model(**batch).logits


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])  # how a CPU and a GPU compute attention
@pytest.mark.parametrize("settings", CASES, ids=lambda case: "-".join(case.values()))
def test_padding_and_other_texts_change_nothing(settings: dict[str, str], kernel: str) -> None:
    model, rows = build(**settings), features([3, 9, 1, 6])
    model.backbone.config._attn_implementation = kernel
    batch = to_tensors(rows)
    together = logits(model, batch)
    alone = torch.cat([logits(model, to_tensors(rows.take(np.array([row])))) for row in range(4)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    longest = batch["input_ids"].shape[1]
    left: dict[str, torch.Tensor] = {"embeddings": batch["embeddings"]}
    for name in ("input_ids", "attention_mask"):
        # Padding on the other side, with other tokens, and longer than the longest text.
        left[name] = torch.full((4, longest + 2), 7 if name == "input_ids" else 0)
        for row, tokens in enumerate(rows.tokens or []):
            left[name][row, longest + 2 - len(tokens) :] = batch[name][row, : len(tokens)]
    torch.testing.assert_close(logits(model, left), together, rtol=0, atol=1e-5)
    order = np.array([2, 0, 3, 1])
    torch.testing.assert_close(
        torch.from_numpy(
            predict_logits(
                model, Features(rows.embeddings if model.config.reads_embedding else None, rows.tokens).take(order), 2
            )
        ),
        together[order],
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("pooling", choices("pooling"))
def test_causal_words_are_the_stock_model_pooled(pooling: str) -> None:
    model = build(input="tokens", pooling=pooling)
    ids = torch.tensor([[5, 9, 4, 30, 8]])
    with torch.no_grad():
        states = model.backbone(input_ids=ids).last_hidden_state[0]
        pooled = {"last": states[-1], "mean": states.mean(dim=0)}
        if pooling == "attention":
            weights = (states @ model.pooling.weight[0]).softmax(dim=0)
            pooled["attention"] = weights @ states
        expected = model.classifier(pooled[pooling])
    found = logits(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("attention", "reaches"), [("causal", False), ("bidirectional", True)])
def test_whether_a_word_sees_those_after_it(attention: str, reaches: bool) -> None:
    model = build(input="tokens", pooling="mean", attention=attention)
    seen: list[torch.Tensor] = []
    model.backbone.norm.register_forward_hook(lambda *hook: seen.append(hook[2]))
    for last in (4, 5):
        ids = torch.tensor([[9, 8, 7, last]])
        logits(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    first, second = (states[0, :3] for states in seen)
    assert torch.allclose(first, second, atol=1e-6) is not reaches


def test_a_hybrid_reads_both() -> None:
    model, rows = build(input="hybrid", pooling="mean"), features([4, 4])
    batch = to_tensors(rows)
    for name in ("embeddings", "input_ids"):
        changed = batch | {name: batch[name].flip(0)}
        assert not torch.allclose(logits(model, changed), logits(model, batch), atol=1e-3)
    with pytest.raises(ValueError, match="hybrid reads embeddings"):
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    with pytest.raises(ValueError, match="hybrid reads input_ids and attention_mask"):
        model(embeddings=batch["embeddings"])


@given(sizes=st.lists(st.integers(1, 90), min_size=1, max_size=6), longest=st.integers(1, 40), share=st.floats(0, 0.99))
def test_windows_cover_every_token(sizes: list[int], longest: int, share: float) -> None:
    overlap = int(share * longest)
    config = EmotionConfig(input="tokens", window_length=longest, window_overlap=overlap, emotion_labels=list(LABELS))
    texts = Features(np.arange(len(sizes), dtype=np.float32)[:, None], [np.arange(size) for size in sizes])
    cut, firsts = cut_into_windows(texts, config)
    windows = cut.take(np.arange(len(cut)))
    np.testing.assert_array_equal(windows.lengths, cut.lengths)
    assert windows.tokens is not None and windows.embeddings is not None
    ends = [*firsts[1:], len(windows)]
    for text, (size, first, end) in enumerate(zip(sizes, firsts, ends, strict=True)):
        parts = list(windows.tokens[first:end])
        assert (windows.embeddings[first:end] == text).all()
        assert set(np.concatenate(parts).tolist()) == set(range(size))
        assert all(len(part) == min(size, longest) for part in parts)
        assert parts[0][0] == 0 and parts[-1][-1] == size - 1
        for before, after in itertools.pairwise(parts):
            assert before[-1] - after[0] + 1 >= overlap and after[-1] > before[-1]


@pytest.mark.parametrize("reads", choices("input"))
@pytest.mark.parametrize(
    ("threads", "texts", "batch_size", "workers", "largest"), [(1, 50, 20, 1, 20), (2, 40, 20, 2, 10), (4, 9, 64, 1, 9)]
)
def test_cores_that_share_the_texts_give_equal_results(
    reads: str, threads: int, texts: int, batch_size: int, workers: int, largest: int
) -> None:
    model, rows = build(input=reads, pooling="mean"), features([1 + row % 11 for row in range(texts)])
    rows = Features(rows.embeddings if reads != "tokens" else None, rows.tokens if reads != "embedding" else None)
    expected = logits(model, to_tensors(rows))
    sizes, together = list[int](), threading.Barrier(workers, timeout=30)

    def wait_for_the_others(*hook: Any) -> None:
        sizes.append(len(hook[2]))
        together.wait()

    model.classifier.register_forward_hook(wait_for_the_others)
    with at_most(torch.get_num_threads()):
        torch.set_num_threads(threads)
        found = predict_logits(model, rows, batch_size)
        assert torch.get_num_threads() == threads
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)
    assert max(sizes) == largest and sum(sizes) == texts


def test_requests_at_the_same_time_leave_the_number_of_threads() -> None:
    model, texts = build(input="embedding"), Features(np.zeros((64, EMBED_DIM), dtype=np.float32))

    def threads_of_a_new_thread() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    with at_most(torch.get_num_threads()):
        torch.set_num_threads(3)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: predict_logits(model, texts, 16), range(32)))
        assert torch.get_num_threads() == threads_of_a_new_thread() == 3
    assert all((answer == answers[0]).all() for answer in answers)


def test_precision_is_the_model_s_own_in_every_thread() -> None:
    model, texts = build(input="embedding"), features([1] * 40)
    texts = Features(texts.embeddings)
    expected = predict_logits(model, texts)
    for threads in (1, 2):
        with at_most(torch.get_num_threads()), torch.autocast("cpu", torch.bfloat16):
            torch.set_num_threads(threads)
            np.testing.assert_allclose(predict_logits(model, texts), expected, rtol=0, atol=1e-6)


def test_an_error_on_one_core_stops_all() -> None:
    model, calls = build(input="embedding"), list[int]()

    def fail(*hook: Any) -> None:
        calls.append(1)
        raise RuntimeError("out of luck")

    model.classifier.register_forward_hook(fail)
    with at_most(torch.get_num_threads()):
        torch.set_num_threads(2)
        with pytest.raises(RuntimeError, match="out of luck"):
            predict_logits(model, Features(np.zeros((1_000, EMBED_DIM), dtype=np.float32)), 16)
        assert torch.get_num_threads() == 2
    assert len(calls) < 100  # fewer than the 125 batches


@pytest.mark.parametrize("windows", ["max", "mean"])
def test_a_long_text_is_its_windows(windows: str) -> None:
    model = build(input="tokens", pooling="mean", windows=windows, window_length=6, window_overlap=2)
    long, short = np.arange(3, 17), np.arange(5, 9)
    found = predict_logits(model, Features(tokens=[short, long, short]))
    parts = [long[start : start + 6] for start in (0, 4, 8)]
    each = predict_logits(model, Features(tokens=parts))
    expected = each.max(axis=0) if windows == "max" else each.mean(axis=0)
    np.testing.assert_allclose(found[1], expected, atol=1e-6)
    np.testing.assert_allclose(found[[0, 2]], predict_logits(model, Features(tokens=[short, short])), atol=1e-6)


def test_texts_without_tokens_are_read() -> None:
    tokens = tokenize(tiny_tokenizer(), ["", "sunny cake 7", "  "], bos_token_id=1)
    assert [row.tolist() for row in tokens] == [[1], [6, 7, 19], [1]]


def test_the_bundled_tokenizer_is_that_of_the_backbone() -> None:
    tokenizer = read_tokenizer(BUNDLED_BACKBONE)
    texts = ["Thank you so much, [NAME]! 😀", "Che bella sorpresa", "お誕生日おめでとう", "a" * 500]
    for text, ids in zip(texts, tokenize(tokenizer, texts, 1), strict=True):
        assert tokenizer.decode(ids.tolist(), skip_special_tokens=False) == text
    assert tokenizer.get_vocab_size() == 49152
    assert bundled_tokenizer().to_str() == tokenizer.to_str()


@pytest.mark.parametrize("one_token", [False, True])
def test_the_first_layers_are_those_of_the_whole_model(tiny_backbone: str, one_token: bool) -> None:
    tokens = torch.randn(3, 1 if one_token else 5, 16, generator=torch.Generator().manual_seed(0))
    whole = load_backbone(tiny_backbone)
    first = load_backbone(tiny_backbone, one_token=one_token, num_hidden_layers=1)
    with torch.no_grad():
        states = whole(inputs_embeds=tokens, output_hidden_states=True).hidden_states
        expected, found = whole.norm(states[1]), first(inputs_embeds=tokens).last_hidden_state
    assert (len(whole.layers), len(first.layers)) == (2, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(found, whole.norm(states[2]), atol=1e-2)


def test_bfloat16_matrices_are_given_back_exactly(tiny_backbone: str) -> None:
    exact = load_frozen_backbone(tiny_backbone, None, "none", "cpu")
    backbone = load_frozen_backbone(tiny_backbone, None, "none", "cpu", dtype=torch.bfloat16)
    assert {p.dtype for name, p in backbone.named_parameters() if "proj" in name} == {torch.bfloat16}
    assert {p.dtype for name, p in backbone.named_parameters() if "proj" not in name} == {torch.float32}
    model = build(backbone, input="tokens", pooling="mean", model_name=tiny_backbone)
    attach_lora(model, 4, 8, 0.0)
    restore_float32(model)
    weights = {
        name.replace(".base_layer", ""): p for name, p in model.backbone.named_parameters() if "lora" not in name
    }
    assert weights.keys() == dict(exact.named_parameters()).keys()
    for name, parameter in exact.named_parameters():
        torch.testing.assert_close(weights[name], parameter, rtol=0, atol=0)


def test_gradients_with_bfloat16_matrices_point_where_the_exact_ones_do(tiny_backbone: str) -> None:
    gradients = []
    for held in (False, True):
        model = build(load_frozen_backbone(tiny_backbone, None, "none", "cpu"), input="tokens", pooling="mean")
        if held:
            hold_bfloat16(model.backbone)
        attach_lora(model, 4, 8, 0.0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        batch = to_tensors(Features(tokens=features([3, 9, 1, 6]).tokens))
        with torch.autocast("cpu", torch.bfloat16, enabled=held):
            model(**batch, labels=torch.ones(4, 3)).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.999


# Runs


def flags_of(tmp_path: Path, backbone: str, *more: str) -> list[str]:
    return [*tiny_flags(write_corpus(tmp_path / "corpus"), backbone, tmp_path / "run"), *more]


@pytest.mark.parametrize("reads", ["tokens", "hybrid"])
def test_a_run_and_its_classifier(
    tmp_path: Path, tiny_backbone: str, reads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.commands.train.fit_precision", lambda recipe: recipe)
    settings = f"--input {reads} --pooling attention --attention bidirectional --window_length 4 --window_overlap 1"
    flags = flags_of(tmp_path, tiny_backbone, *settings.split(), "--balance", "duplicate", "--balance_target", "30")
    assert main([*flags, "--bf16", "true", "--num_hidden_layers", "1"]) == 0
    run = RunFolder(tmp_path / "run")
    config = json.loads((run.path / "model" / "config.json").read_text())
    assert (config["encoder"] == "") == (config["embed_dim"] == 0) == (reads == "tokens")
    truncation = run.read("audit.json")["truncation"]["train"]
    texts = [json.loads(line)["text"] for line in (tmp_path / "corpus" / "train.jsonl").read_text().splitlines()]
    lengths = np.array([len(tokens) for tokens in tokenize(tiny_tokenizer(), texts, 1)])
    assert truncation == {
        "texts": 48,
        "tokens": lengths.sum(),
        "texts_longer": (lengths > 4).sum(),
        "tokens_beyond": (lengths - 4).clip(min=0).sum(),
    }
    classifier = load_classifier(str(run.path))
    assert config["backbone_config"]["num_hidden_layers"] == 1
    golden = run.read("golden.json")["rows"]
    found = classifier.predict_proba([row["text"] for row in golden])
    np.testing.assert_allclose(found, [row["probabilities"] for row in golden], atol=1e-6)
    assert run.read("metrics.json")["test"]["per_label"]["macro_f1"] > 0.4
    export(run.path, tmp_path / "package")
    assert check(tmp_path / "package") == []


@pytest.mark.parametrize("quantization", ["nf4", "8bit"])
@pytest.mark.parametrize("reads", ["tokens", "hybrid"])
def test_a_quantized_backbone_of_a_vision_model_reads_words(tmp_path: Path, quantization: str, reads: str) -> None:
    """The 24B's path at a small size: the quantized language model of a Mistral 3, scored as it was trained."""
    torch.manual_seed(0)
    text = tiny_config()
    text.update({"hidden_size": 64, "intermediate_size": 64, "head_dim": 16})
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8, image_size=28
    )
    whole = Mistral3Config(text_config=text, vision_config=vision, image_token_index=5)
    Mistral3ForConditionalGeneration(whole).save_pretrained(tmp_path / "vision")
    PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer(), unk_token="<unk>").save_pretrained(tmp_path / "vision")
    flags = flags_of(tmp_path, str(tmp_path / "vision"), "--input", reads, "--pooling", "mean", "--balance", "none")
    assert main([*flags, "--quantization", quantization, "--epochs", "2", "--bf16", "true"]) == 0
    run = RunFolder(tmp_path / "run")
    losses = re.findall(r"eval_loss ([0-9.]+)", (run.path / "train.log").read_text())
    assert len(losses) == 2 and float(losses[1]) < float(losses[0])
    golden = run.read("golden.json")["rows"]
    found = load_classifier(str(run.path)).predict_proba([row["text"] for row in golden])
    np.testing.assert_allclose(found, [row["probabilities"] for row in golden], atol=1e-3)


def test_copies_have_the_words_of_their_parents(tmp_path: Path, tiny_backbone: str) -> None:
    flags = flags_of(tmp_path, tiny_backbone, "--input", "tokens", "--balance", "duplicate", "--balance_target", "40")
    data = prepare(parse(flags).recipe, Corpora())
    copies = np.flatnonzero(data.rows.synthetic)
    assert len(copies) > 10
    tokens = data.training_features().tokens
    assert tokens is not None and data.tokens is not None and data.training_features().embeddings is None
    for row in copies:
        parent = data.rows.parents[row, 0]
        np.testing.assert_array_equal(tokens[row], data.tokens["train"][parent])
        np.testing.assert_array_equal(data.rows.labels[row], data.corpus["train"].labels[parent])


def test_token_rows_are_what_the_tokenizer_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file without a name, in pieces; also where the folder is missing."""
    monkeypatch.setattr(encoding, "_TEXTS_AT_ONCE", 3)
    texts = ["a sunny cake", "", "cake", "cake cake cake a", "\N{PARTY POPPER}", "dark", "a"]
    for folder in (tmp_path, tmp_path / "missing"):
        rows = tokenize_rows(tiny_tokenizer(), texts, 1, folder)
        wanted = tokenize(tiny_tokenizer(), texts, 1)
        assert isinstance(rows.ids.base, np.memmap) and not list(tmp_path.iterdir())
        for chosen in (range(7), [5, 0, 0, 3]):
            taken = rows.take(np.array(chosen))
            assert len(taken) == len(chosen) and taken.ids is rows.ids
            for row, place in zip(taken, chosen, strict=True):
                assert row.dtype == np.int64
                np.testing.assert_array_equal(row, wanted[place])
        np.testing.assert_array_equal(rows[2:4][1], wanted[3])


def test_noise_has_the_lengths_of_the_texts_in_another_order(tmp_path: Path, tiny_backbone: str) -> None:
    recipe = parse(flags_of(tmp_path, tiny_backbone, "--input", "tokens", "--balance", "none")).recipe
    real, noise = prepare(recipe, Corpora()).tokens, prepare(recipe, Corpora(), "noise").tokens
    assert real is not None and noise is not None
    for split in real:
        said, lengths = [len(row) for row in noise[split]], [len(row) for row in real[split]]
        assert said != lengths and sorted(said) == sorted(lengths)
    tokens = np.concatenate(noise["train"])
    assert len(np.unique(tokens)) == 32 and (tokens == np.concatenate(real["train"])).mean() < 0.1


def test_a_pooled_split_takes_the_words_of_its_parents(tmp_path: Path, tiny_backbone: str) -> None:
    flags = "--input tokens --split pooled-r2 --balance duplicate --balance_target 40"
    data = prepare(parse(flags_of(tmp_path, tiny_backbone, *flags.split())).recipe, Corpora())
    words = data.training_features().tokens
    assert words is not None and data.tokens is not None and data.rows.parents.max() >= len(data.tokens["train"])
    texts = [text for split in data.corpus.splits.values() for text in split.texts]
    for row, parent in zip(words, data.rows.parents[:, 0], strict=True):
        np.testing.assert_array_equal(row, tokenize(tiny_tokenizer(), [texts[parent]], 1)[0])


REFUSED = {
    "--head mlp": "head: mlp has no backbone to read words",
    "--loader unsloth --quantization nf4 --one_token false": "loader: unsloth is called as in the reference",
    "--balance ismote": "balance: ismote makes rows between embeddings",
    "--window_length 8 --window_overlap 8": "Remedy: use a smaller window_overlap",
    "--input embedding --pooling mean": "pooling and attention apply only to words",
    "--input embedding --attention bidirectional": "pooling and attention apply only to words",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_what_does_not_go_together_is_refused(flags: str) -> None:
    with pytest.raises(RecipeError, match=REFUSED[flags]):
        parse(["--input", "tokens", "--balance", "none", *flags.split()])


def test_more_layers_than_there_are_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_backbone: str
) -> None:
    assert main(flags_of(tmp_path, tiny_backbone, "--num_hidden_layers", "3")) == 2
    assert "3 is too many: tiny/mistral has 2 layers. Remedy: use 0 (all) to 2" in capsys.readouterr().err


def test_a_backbone_without_a_tokenizer_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_backbone: str
) -> None:
    MistralModel(tiny_config()).save_pretrained(tmp_path / "bare")
    assert main(flags_of(tmp_path, str(tmp_path / "bare"), "--input", "tokens", "--balance", "none")) == 2
    assert "tokenizer of" in (said := capsys.readouterr().err) and "Remedy: " in said


def test_texts_in_any_script_and_length_are_read(tmp_path: Path, tiny_backbone: str) -> None:
    model = build(input="tokens", pooling="mean", window_length=8, window_overlap=2)
    model.tokenizer = tiny_tokenizer()
    classifier = EmotionClassifier.from_model(model, batch_size=3)
    texts = ["", "sunny " * 500, "😀", "dark cellar", "お誕生日", "\ud83d half"]
    together = classifier.predict_proba(texts)
    assert together.shape == (6, 3) and np.isfinite(together).all()
    alone = np.concatenate([classifier.predict_proba([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


# Packages


@pytest.fixture(scope="module")
def words_package(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    """The package of a run that reads words."""
    base = tmp_path_factory.mktemp("words")
    settings = "--input tokens --pooling attention --prefix bos --window_length 4 --window_overlap 1 --balance none"
    assert main(flags_of(base, tiny_backbone, *settings.split())) == 0
    export(base / "run", base / "package")
    return base / "package"


def test_a_package_that_reads_words_proves_itself(words_package: Path) -> None:
    assert check(words_package) == []
    card = (words_package / "README.md").read_text()
    assert "text → tokenizer → tokens, 4 at once after the token that begins a sequence → backbone (causal" in card
    assert "encoder" not in (words_package / "requirements.txt").read_text()
    assert "A longer text is classified in windows that share 1 token. Each" in card


def test_its_classifier_and_pipeline_give_the_golden_probabilities(words_package: Path) -> None:
    golden = json.loads((words_package / "golden.json").read_text())["rows"]
    texts, wanted = [row["text"] for row in golden], np.array([row["probabilities"] for row in golden])
    for fuse in (True, False):
        classifier = EmotionClassifier(words_package, fuse=fuse, batch_size=3)
        np.testing.assert_allclose(classifier.predict_proba(texts), wanted, atol=1e-5)
    assert not any("lora" in name for name, _ in EmotionClassifier(words_package).model.named_parameters())
    pipe = pipeline("text-classification", model=str(words_package), trust_remote_code=True, top_k=None)
    with pytest.raises(TypeError, match=r"texts is a mapping of \['text'\]. Remedy: give its texts alone"):
        pipe({"text": "sunny cake"})
    for said, row in zip(pipe(texts, batch_size=3), wanted, strict=True):
        found = {entry["label"]: entry["score"] for entry in said}
        np.testing.assert_allclose([found[label] for label in LABELS], row, atol=1e-5)


def _other_vocabulary(path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"word{number}" for number in range(40)])
    tokenizer.save(str(path))


BROKEN = {
    "is missing": lambda path: path.unlink(),
    "cannot be read": lambda path: path.write_text(path.read_text()[:-200]),
    "has token 61, but the backbone has 32": _other_vocabulary,
    "bytes, more than 33,554,432": lambda path: path.write_bytes(b"{}" + b" " * 2**25),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_tokenizer_is_refused(words_package: Path, tmp_path: Path, what: str) -> None:
    copy = shutil.copytree(words_package, tmp_path / "package")
    BROKEN[what](copy / "tokenizer.json")
    seal(copy)
    found = [problem for problem in check(copy) if problem.startswith("tokenizer.json")]
    assert len(found) >= 1 and all("Remedy: " in problem for problem in found)
    with pytest.raises(PackageError, match=f"tokenizer.json .*{what}"):
        EmotionClassifier(copy)


def test_another_order_of_the_vocabulary_is_seen(words_package: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(words_package, tmp_path / "package")
    content = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["I"], vocabulary["passed"] = vocabulary.pop("sunny"), vocabulary.pop("cake")
    (copy / "tokenizer.json").write_text(json.dumps(content))
    assert any("does not match SHA256SUMS" in problem for problem in check(copy))
    seal(copy)
    assert any("golden probabilities differ" in problem for problem in check(copy))


def test_a_tokenizer_that_nothing_reads_is_not_part_of_a_package(package: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(package, tmp_path / "package")
    tiny_tokenizer().save(str(copy / "tokenizer.json"))
    seal(copy)
    assert [problem for problem in check(copy) if "tokenizer.json is not part of a package" in problem]
