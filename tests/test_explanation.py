"""Why a label: contributions of words, by leaving out and by gradients; what cannot be explained is refused."""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from hub_release.graphs.write import write_graphs
from modeling.infer import (
    EmotionClassifier,
    EmotionModel,
    Explanation,
    explanation,
    graph,
    keep_words,
    load_backbone,
    shell,
    split_words,
)
from tests.conftest import EMBED_DIM, fake_encoder, tiny_tokenizer
from tests.test_texts import tiny_model

TEXT = "a sunny cake, 3 dark\n doors  "
WORDS = ["a", "sunny", "cake,", "3", "dark", "doors"]
READS = [{"input": "tokens", "pooling": "mean"}, {"input": "hybrid", "pooling": "mean", "attention": "bidirectional"}]
GRADIENTS = "integrated-gradients"


def tiny(**settings: Any) -> EmotionClassifier:
    model = tiny_model(**settings)
    model.tokenizer = tiny_tokenizer() if model.config.reads_words else None
    return EmotionClassifier.from_model(model, encoder=fake_encoder, threads=1)


@pytest.fixture(scope="module")
def by_input() -> dict[str, EmotionClassifier]:
    return {**{case["input"]: tiny(**case) for case in READS}, "embedding": tiny()}


def contributions(found: Explanation) -> list[float]:
    return [word.contribution for word in found.words]


@pytest.mark.parametrize("reads", ["tokens", "hybrid", "embedding"])
def test_leaving_a_word_out_is_computed_as_said(by_input: dict[str, EmotionClassifier], reads: str) -> None:
    classifier = by_input[reads]
    found = classifier.explain(TEXT, "anger")

    def logit(text: str) -> float:
        probability = float(classifier.predict_proba([text])[0, 1])
        return float(np.log(probability / (1 - probability)))

    without = ["sunny cake, 3 dark\n doors  ", "a cake, 3 dark\n doors  ", "a sunny 3 dark\n doors  "]
    without += ["a sunny cake, dark\n doors  ", "a sunny cake, 3 doors  ", "a sunny cake, 3 dark"]
    assert [word.text for word in found.words] == WORDS
    np.testing.assert_allclose(contributions(found), [logit(TEXT) - logit(text) for text in without], atol=1e-5)
    error = abs(sum(contributions(found)) - (logit(TEXT) - logit("")))
    assert found.completeness_error == pytest.approx(error, abs=1e-5) and found.sentence_embedding is None
    assert found.probability == pytest.approx(classifier.predict_proba([TEXT])[0, 1], abs=1e-6)
    assert ("The model reads no words" in found.meaning) == (reads == "embedding")


@pytest.mark.parametrize("reads", ["tokens", "hybrid"])
def test_integrated_gradients_add_up(by_input: dict[str, EmotionClassifier], reads: str) -> None:
    """To the difference from the baseline, the better the more steps; computed here without captum."""
    classifier = by_input[reads]
    coarse, fine = (classifier.explain(TEXT, "fear", GRADIENTS, steps=steps) for steps in (2, 200))
    assert fine.completeness_error < 1e-4 < coarse.completeness_error
    assert (fine.sentence_embedding is None) == (reads == "tokens")
    assert fine.probability == pytest.approx(classifier.predict_proba([TEXT])[0, 2], abs=1e-6)
    model, (ids,) = classifier.model, classifier.tokenize([TEXT]) or []
    words = model.get_input_embeddings()(torch.from_numpy(ids)).detach()
    text, empty = torch.from_numpy(fake_encoder([TEXT, ""]))
    steps, shares, own = 4_000, torch.zeros_like(words), torch.zeros_like(text)
    for part in ((torch.arange(steps) + 0.5) / steps).split(500):
        at = [part[:, None, None] * words, empty + part[:, None] * (text - empty)]
        at = [point.requires_grad_() for point in at]
        mask = torch.ones(len(part), len(ids))
        logits = model(embeddings=at[1], inputs_embeds=at[0], attention_mask=mask).logits
        gradients = torch.autograd.grad(logits[:, 2].sum(), at, allow_unused=True)
        shares += gradients[0].sum(0) / steps * words
        own += 0 if gradients[1] is None else gradients[1].sum(0) / steps * (text - empty)
    assert len(ids) == len(WORDS), "one token for each word"
    np.testing.assert_allclose(contributions(fine), shares.sum(-1), atol=1e-3)
    assert fine.sentence_embedding is None or fine.sentence_embedding == pytest.approx(float(own.sum()), abs=1e-3)


def test_gradients_leave_the_classifier_as_it_is(by_input: dict[str, EmotionClassifier]) -> None:
    """Also inside inference mode, after which nothing has gradients."""
    classifier = by_input["hybrid"]
    before = classifier.predict_proba([TEXT])
    with torch.inference_mode():
        inside = classifier.explain(TEXT, "joy", GRADIENTS)
    assert inside == classifier.explain(TEXT, "joy", GRADIENTS)
    np.testing.assert_array_equal(classifier.predict_proba([TEXT]), before)
    assert all(parameter.grad is None for parameter in classifier.model.parameters())


def test_a_word_alone_that_counts_has_it_all() -> None:
    """Nothing tells the other tokens from the baseline, so nothing else can have a share."""
    one = tiny(input="tokens", pooling="mean", attention="bidirectional")
    with torch.no_grad():
        table = one.model.get_input_embeddings().weight
        table[torch.arange(len(table)) != 7] = 0  # cake
    for found in (one.explain("dark cake 3", "joy", GRADIENTS), one.explain("cake dark 3", "joy", GRADIENTS)):
        largest = max(found.words, key=lambda word: abs(word.contribution))
        assert largest.text == "cake" and sum(map(abs, contributions(found))) == abs(largest.contribution) > 0.01
    only_cake = EmotionClassifier.from_model(
        tiny_model(), encoder=lambda texts: np.array([["cake" in text] * EMBED_DIM for text in texts], np.float32)
    )
    first, cake, last = contributions(only_cake.explain("dark cake 3", "joy"))
    assert first == last == 0 != cake


def test_what_a_word_adds_takes_the_label_away_without_it(by_input: dict[str, EmotionClassifier]) -> None:
    """The contribution's sign: the probability falls without a word that speaks for the label."""
    classifier = by_input["tokens"]
    for word in classifier.explain("sunny cake 3 dark door", "joy").words:
        rest = [other for other in ["sunny", "cake", "3", "dark", "door"] if other != word.text]
        fell = classifier.predict_proba(["sunny cake 3 dark door", " ".join(rest)])[:, 0]
        assert (fell[0] > fell[1]) == (word.contribution > 0)


texts = st.text(st.sampled_from("ab,.é😀\u200b\n\t  \u3000寿司ーทย"), min_size=1) | st.text(min_size=1)


@given(text=texts, data=st.data())
def test_words_are_parts_of_the_text(text: str, data: st.DataObject) -> None:
    spans = split_words(text)
    assert "".join(text[start:end] for start, end in spans) == "".join(text.split())
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    if spans:
        kept = data.draw(st.lists(st.booleans(), min_size=len(spans), max_size=len(spans)))
        found = keep_words(text, spans, kept)
        wanted = [text[start:end] for (start, end), keep in zip(spans, kept, strict=True) if keep]
        assert "".join(found.split()) == "".join("".join(wanted).split())
        assert keep_words(text, spans, [True] * len(spans)) == text
        assert keep_words(text, spans, [False] * len(spans)) == ""


@settings(max_examples=30, deadline=None)
@given(text=texts)
def test_every_text_is_explained_or_refused(by_input: dict[str, EmotionClassifier], text: str) -> None:
    for reads, method in (("embedding", "leave-out"), ("tokens", GRADIENTS)):
        try:
            found = by_input[reads].explain(text, "joy", method)  # type: ignore[arg-type]
        except ValueError as error:
            assert "Remedy: " in str(error)
            continue
        assert found.words and all(found.text[word.start : word.end] == word.text for word in found.words)
        assert np.isfinite(contributions(found)).all() and str(found).isprintable() == ("\n" not in str(found))


def test_kana_and_han_are_words_each() -> None:
    text = "とても 嬉しい, ok!"
    assert [text[start:end] for start, end in split_words(text)] == [*"とても嬉しい", ",", "ok!"]


def test_a_token_of_several_words_is_divided(by_input: dict[str, EmotionClassifier]) -> None:
    """White space belongs to the word after it, at the end of the text to the last."""
    shares = explanation.Shares(np.array([1.0, 6.0, 10.0, 100.0]), 0.5, 2.0, 0.0)
    text = "ab  寿司x "
    found = explanation.explain_shares(
        text, "joy", split_words(text), [(0, 2), (2, 5), (5, 7), (7, 8)], shares, by_input["hybrid"].config
    )
    assert [word.text for word in found.words] == ["ab", "寿", "司", "x"]
    assert contributions(found) == [1.0, 6.0, 5.0, 105.0]
    assert found.completeness_error == pytest.approx(117.5 - 2)


def test_logits_of_certain_probabilities_are_finite() -> None:
    exact = np.array([-20.0, -3.0, 0.0, 3.0, 9.0])
    found = explanation.to_logits((1 / (1 + np.exp(-exact))).astype(np.float32))
    np.testing.assert_allclose(found, exact, atol=1e-3)
    assert np.isfinite(explanation.to_logits(np.array([0, 1], np.float32))).all()


@pytest.mark.parametrize(
    ("text", "label", "options", "error", "said"),
    [
        (["a"], "joy", {}, TypeError, r"text is list, not a string: \['a'\]. Remedy: give one text"),
        (None, "joy", {}, TypeError, "text is NoneType, not a string"),
        ("a", "bliss", {}, ValueError, "label 'bliss' is not one of 'joy', 'anger', 'fear'. Remedy"),
        ("a", 0, {}, ValueError, "label 0 is not one of"),
        ("a", "joy", {"method": "lime"}, ValueError, "unknown method 'lime'. Remedy: use leave-out or integrated"),
        ("a", "joy", {"method": ["lime"]}, ValueError, "unknown method"),
        ("a", "joy", {"steps": 0}, ValueError, "steps is 0. Remedy: use a whole number from 1"),
        ("a", "joy", {"steps": True}, ValueError, "steps is True"),
        ("", "joy", {}, ValueError, "the text has no visible character"),
        (" \u200b\n", "joy", {}, ValueError, "the text has no visible character, so no word"),
        ("a " * 201, "joy", {}, ValueError, "the text has 201 words, more than the 200 that can be explained. Remedy"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    by_input: dict[str, EmotionClassifier], text: Any, label: Any, options: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        by_input["tokens"].explain(text, label, **options)


def test_one_embedding_has_no_gradients_of_words(by_input: dict[str, EmotionClassifier]) -> None:
    with pytest.raises(ValueError, match=r"need a model that reads words\. Remedy: use method='leave-out'"):
        by_input["embedding"].explain("a", "joy", GRADIENTS)


def test_without_captum_the_error_says_what_to_install(
    by_input: dict[str, EmotionClassifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError, match="Remedy: pip install captum"):
        by_input["tokens"].explain("a", "joy", GRADIENTS)
    assert by_input["tokens"].explain("a", "joy").words


def test_a_long_text_is_left_out_word_by_word(by_input: dict[str, EmotionClassifier]) -> None:
    """It has several windows."""
    classifier, text = by_input["tokens"], "dark " * 160 + "cake"
    found = classifier.explain(text, "joy")
    without = classifier.predict_proba([text, "dark " * 160])[:, 0].astype(float)
    assert len(found.words) == 161
    assert found.words[-1].contribution == pytest.approx(np.diff(np.log(1 / without - 1))[0], abs=1e-4)


@pytest.mark.parametrize("windows", ["mean", "max"])
@pytest.mark.parametrize("case", READS, ids=lambda case: case["input"])
def test_gradients_of_a_text_in_windows_add_up(case: dict[str, Any], windows: str) -> None:
    """To the difference of the pooled logits; with ``max``, only the words of one window count."""
    classifier = tiny(**case, windows=windows, window_length=8, window_overlap=2)
    text = " ".join(["sunny", "cake", "dark", "door", "3", "cellar", "slammed"] * 3)
    fine = classifier.explain(text, "anger", GRADIENTS, steps=200)
    probability = float(classifier.predict_proba([text])[0, 1])
    assert fine.probability == pytest.approx(probability, abs=1e-6) and fine.completeness_error < 1e-4
    assert sum(contribution != 0 for contribution in contributions(fine)) == (8 if windows == "max" else 21)


@pytest.mark.parametrize("quantization", ["nf4", "8bit"])
def test_gradients_of_quantized_weights(tiny_backbone: str, quantization: Any) -> None:
    """They add up as far as such weights allow, after a reading without gradients too."""
    pytest.importorskip("bitsandbytes")
    model = tiny_model(**READS[1], quantization=quantization)
    model.backbone = load_backbone(tiny_backbone, quantization=quantization)
    model.tokenizer = tiny_tokenizer()
    classifier = EmotionClassifier.from_model(model.eval(), encoder=fake_encoder)
    classifier.predict_proba([TEXT])
    found = classifier.explain(TEXT, "joy", GRADIENTS)
    assert found.completeness_error < 0.05 < sum(map(abs, contributions(found)))


def test_a_graph_explains_as_pytorch_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = tiny(**READS[1])
    model = copy.deepcopy(classifier.model)
    monkeypatch.setattr(EmotionModel, "from_pretrained", lambda *_: model)
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    write_graphs(tmp_path, float32=True, int8=False)
    monkeypatch.setattr(graph, "read_tokenizer", lambda *_: model.tokenizer)
    by_graph = EmotionClassifier(tmp_path, encoder=fake_encoder, backend="onnx")
    ours, theirs = classifier.explain(TEXT, "joy"), by_graph.explain(TEXT, "joy")
    np.testing.assert_allclose(contributions(theirs), contributions(ours), atol=1e-4)
    assert theirs.completeness_error == pytest.approx(ours.completeness_error, abs=1e-4)
    with pytest.raises(ValueError, match=r"a graph has no gradients\. Remedy: use method='leave-out', or PyTorch"):
        by_graph.explain(TEXT, "joy", GRADIENTS)


def test_the_package_explains_in_a_stranger_s_process(package: Path, tmp_path: Path) -> None:
    """The same as here, without this project and without captum; from Python and from the shell."""
    code = f"""
import sys
for name in ("modeling", "captum"):
    sys.modules[name] = None
sys.path.insert(0, {str(package)!r})
import infer
found = infer.EmotionClassifier({str(package)!r}).explain({TEXT!r}, "joy")
print([word.contribution for word in found.words])
sys.exit(infer.main(["--explain", "joy", "sunny cake"]))
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed, *shown = done.stdout.splitlines()
    classifier = EmotionClassifier(package)
    np.testing.assert_allclose(json.loads(printed), contributions(classifier.explain(TEXT, "joy")), atol=1e-5)
    expected = classifier.explain("sunny cake", "joy")
    assert shown == str(expected).splitlines() and f"{expected.words[0].contribution:+8.3f}  sunny" in shown
    assert shown[-1] == expected.meaning and "The model reads no words" in expected.meaning


def test_the_shell_says_what_is_wrong(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.main(["--model", str(package), "--explain", "bliss", "sunny cake"]) == 2
    assert "label 'bliss' is not one of" in capsys.readouterr().err
    for label in ("joy", ""):
        with pytest.raises(SystemExit):
            shell.main(["--model", str(package), "--explain", label, "--input", "texts.txt", "a"])
        assert "leave --input, --output, --threshold, --top_k and" in capsys.readouterr().err


def test_a_terminal_gets_a_short_explanation_and_no_commands() -> None:
    words = tuple(explanation.Word(f"w\x1b[31m{n}", n, n + 1, float(n - 15)) for n in range(30))
    found = Explanation("…", "jo\x1by", "leave-out", words, 0.25, 0.5, 0.0, 0.0, "It means.")
    said = str(found)
    assert "\x1b" not in said and len(said.splitlines()) == 1 + 12 + 2 + 2
    assert " -15.000  w\\x1b[31m0" in said and "(18 other words together)" in said and "+0.250  (the sentence" in said
    shown = [float(line.split()[0]) for line in said.splitlines()[1:15]]
    assert sum(shown) == pytest.approx(sum(word.contribution for word in words) + 0.25)
