"""The audit finds planted faults and nothing that is only similar; a policy does what it says."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from modeling.infer import cache_folder, load_encoder
from modeling.recipe import choices
from tests.conftest import ROOT
from training.audit.label_order import suspect_labels
from training.audit.rows import CorpusAudit, LeakError, apply_policy, audit_corpus, audit_rows
from training.data.balance import oversample, real_rows
from training.data.copies import MIN_SHINGLES, NEAR, SHINGLE, find_copies, match_key, normalize
from training.data.corpus import Corpus, Split, load_corpus
from training.data.encoding import encode
from training.run import main

NAMES = ("joy", "anger", "fear")
LONG = "we drove all night through the rain and nobody in the car said a single word until the sun came up"
# Read now: the runs of other tests set their own cache.
CACHE = cache_folder() / "embeddings"
GOEMOTIONS = pytest.mark.skipif("GOEMOTIONS_DIR" not in os.environ, reason="GOEMOTIONS_DIR is not set")


def split_of(rows: list[tuple[str, str]]) -> Split:
    """A split from rows of (text, label names)."""
    labels = np.array([[int(name in labels.split()) for name in NAMES] for _, labels in rows], dtype=np.int8)
    return Split([str(i) for i in range(len(rows))], [text for text, _ in rows], labels)


def corpus_of(train: list[tuple[str, str]], validation: list[tuple[str, str]], test: list[tuple[str, str]]) -> Corpus:
    splits = {"train": split_of(train), "validation": split_of(validation), "test": split_of(test)}
    return Corpus("planted", "", NAMES, splits)


@pytest.fixture
def planted() -> Corpus:
    """A corpus with copies of every kind, label noise, and no train row for fear."""
    return corpus_of(
        [
            ("Well,   done you!", "joy"),
            ("well done you", "anger"),
            ("The door slammed", "anger"),
            (LONG, "joy"),
            ("a cake in the sun", "joy"),
        ],
        [("The door slammed", "anger"), ("a dark cellar", "fear")],
        [("WELL DONE, you…", "joy"), (LONG.replace("rain", "snow"), "anger"), ("the steps behind me", "fear")],
    )


# Texts


def test_normalize() -> None:
    assert normalize("  Hello,\t  WORLD!\n") == "hello world"
    assert normalize("ﬁne \u200bStraße ２") == "fine strasse 2"
    assert normalize("so 😂😂 sad ❤️") == normalize("So 😂😂, sad ❤")
    # Texts of punctuation only are not all equal.
    assert normalize(" :) ") == ":)" and normalize("!!!") != normalize("???")
    assert match_key("Well,done") == match_key("well done")
    assert normalize("ok 😂") != normalize("ok 😡")


words = st.lists(st.text("abcdefxyzéüßжд0", min_size=1, max_size=8), min_size=1, max_size=12)


@given(words=words, seed=st.integers(0, 10_000))
def test_case_spaces_and_punctuation_do_not_hide_a_copy(words: list[str], seed: int) -> None:
    generator = np.random.default_rng(seed)
    separators = generator.choice([" ", "  ", ", ", ",", " \u00a0", "\t", "… ", "-"], size=len(words))
    case = [str.upper, str.lower, str.title]
    changed = "".join(case[generator.integers(3)](word) + end for word, end in zip(words, separators, strict=True))
    found = find_copies([changed], ["something else", " ".join(words)])
    assert [(copy.row, copy.reference_row, copy.similarity) for copy in found] == [(0, 1, 1.0)]
    assert found[0].kind == ("exact" if changed == " ".join(words) else "normalised")


def test_a_near_copy_is_a_long_text_with_one_word_changed() -> None:
    references = ["something else altogether, as long as the others", LONG]
    for word in ("drove", "night", "nobody", "single", "sun"):
        (found,) = find_copies([LONG.upper().replace(word.upper(), "HORSE")], references)
        assert (found.kind, found.reference_row) == ("near", 1)
        assert NEAR <= found.similarity < 1


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("I love this movie", "I hate this movie"),
        ("I am happy about it", "I am not happy about it"),
        ("Thank you so much for this", "Thank you so much for that"),
        ("!!!", "???"),
        (":)", ":("),
        ("😂", "😡"),
        ("[NAME] is a good friend of mine and I am glad", "[NAME] is a bad liar and I never want to see him again"),
    ],
)
def test_similar_texts_are_not_copies(text: str, other: str) -> None:
    assert find_copies([text], [other]) == []


def test_the_best_copy_is_named_once() -> None:
    changed = LONG.replace("rain", "snow")
    (found,) = find_copies([LONG], [changed, LONG.upper(), LONG, LONG])
    assert (found.kind, found.reference_row) == ("exact", 2)
    (found,) = find_copies([LONG], [changed, LONG.upper(), LONG.title()])
    assert (found.kind, found.reference_row) == ("normalised", 1)
    (found,) = find_copies([LONG], [changed.replace("sun", "moon"), changed, changed])
    assert (found.kind, found.reference_row) == ("near", 1)
    assert find_copies([], [LONG]) == find_copies([LONG], []) == []
    assert len(find_copies(["\ud800 half a character"], ["\ud800 HALF a character"])) == 1


def shingles(text: str) -> set[str]:
    return {normalize(text)[i : i + SHINGLE] for i in range(len(normalize(text)) - SHINGLE + 1)}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), sizes=st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_near_copies_are_those_of_the_definition(seed: int, sizes: tuple[int, int]) -> None:
    generator = np.random.default_rng(seed)
    vocabulary = [*LONG.split(), "moon", "rivers", "yesterday"]

    def mutate() -> str:
        chosen = [word if generator.random() > 0.06 else str(generator.choice(vocabulary)) for word in LONG.split()]
        return " ".join(chosen[: generator.integers(3, len(chosen) + 1)])

    texts, references = ([mutate() for _ in range(size)] for size in sizes)
    found = {copy.row: copy for copy in find_copies(texts, references) if copy.kind == "near"}
    equal = {row for row, text in enumerate(texts) if text in references}
    for row in set(range(len(texts))) - equal:
        mine = shingles(texts[row])
        others = [shingles(text) for text in references]
        truth = [len(mine & other) / len(mine | other) * (len(other) >= MIN_SHINGLES) for other in others]
        if row in found:
            assert found[row].similarity == pytest.approx(truth[found[row].reference_row])
            assert found[row].similarity >= NEAR
        # Candidates are found with a probability: below 0.85 one may, very rarely, be missed.
        if len(mine) >= MIN_SHINGLES and max(truth) >= 0.85:
            assert found[row].reference_row == int(np.argmax(truth))


# The corpus


def test_copies_and_label_noise_are_counted(planted: Corpus) -> None:
    audit = audit_corpus(planted)
    assert audit.copies["train"].tolist() == [True, True, True, True, False]
    assert audit.copies["validation"].tolist() == [True, False]
    assert audit.copies["test"].tolist() == [True, True, False]
    validation, test = (audit.report["copies"][f"{split}_in_train"] for split in ("validation", "test"))
    assert [validation[kind] for kind in ("exact", "normalised", "near")] == [1, 0, 0]
    assert [test[kind] for kind in ("exact", "normalised", "near")] == [0, 1, 1]
    assert test["positives"] == {"joy": 1, "anger": 1, "fear": 0}
    assert (test["labels_differ"], test["labels_differ_share"]) == (1, 0.5)
    assert (validation["labels_differ"], validation["labels_differ_share"]) == (0, 0.0)
    near = test["examples"][0]
    assert (near["kind"], near["copy"], near["labels"], near["labels_of_copy"]) == ("near", LONG, ["anger"], ["joy"])
    assert audit.report["copies"]["validation_in_test"]["rows"] == 0
    assert audit.report["copies"]["train_rows_copied"] == 4
    repeated = audit.report["repeated_in_train"]
    assert (repeated["groups"], repeated["rows"], repeated["groups_with_different_labels"]) == (1, 2, 1)
    assert repeated["examples"] == [{"text": "Well,   done you!", "labels": [["joy"], ["anger"]]}]
    assert json.loads(json.dumps(audit.report)) == audit.report


def test_labels_without_positives_are_named(planted: Corpus) -> None:
    missing = audit_corpus(planted).report["labels_without_positives"]
    assert missing == {"train": ["fear"], "validation": ["joy"], "test": []}


def test_the_two_reports_fit_together(planted: Corpus) -> None:
    size = sum(len(planted[split]) for split in ("train", "validation", "test"))
    embeddings = np.random.default_rng(0).normal(size=(size, 4)).astype(np.float32)
    report = audit_corpus(planted).report
    rows = audit_rows(planted, embeddings, real_rows(embeddings[:5], planted["train"].labels), report)
    assert not set(rows) & set(report)
    for split in ("validation", "test"):
        letter_for_letter = rows["splits"][split]["texts_also_in_train"]
        assert letter_for_letter == report["copies"][f"{split}_in_train"]["exact"]


def test_policies(planted: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    audit = audit_corpus(planted)
    assert apply_policy(planted, audit, "report") is planted
    with caplog.at_level("INFO"):
        dropped = apply_policy(planted, audit, "drop-from-train")
    assert "4 of 5 rows dropped" in caplog.text and "no positive row for anger is left" in caplog.text
    assert (dropped["train"].ids, dropped["train"].texts) == (["4"], ["a cake in the sun"])
    assert dropped["train"].labels.tolist() == [[1, 0, 0]]
    assert dropped["test"] is planted["test"] and dropped["validation"] is planted["validation"]
    assert not any(mask.any() for mask in audit_corpus(dropped).copies.values())
    with pytest.raises(
        LeakError, match=r"test: 0 exact, 1 normalized, 1 near.*Remedy: use audit_policy drop-from-train"
    ):
        apply_policy(planted, audit, "fail")


def test_policies_leave_a_clean_corpus_alone() -> None:
    clean = corpus_of([("a cake", "joy")], [("a door", "anger")], [("a cellar", "fear")])
    for policy in choices("audit_policy"):
        assert apply_policy(clean, audit_corpus(clean), policy) is clean
    everything = {"train": np.array([True]), "validation": np.array([True]), "test": np.array([False])}
    with pytest.raises(LeakError, match="every training row is a copy"):
        apply_policy(clean, CorpusAudit(everything, {}), "drop-from-train")


def test_a_smaller_split_counts_its_rows_without_label() -> None:
    labels = np.array([[1, 0, 0], [0, 0, 0], [0, 0, 0]], dtype=np.int8)
    assert Split(["1", "2", "3"], ["a", "b", "c"], labels, 2).take(np.array([0, 2])).without_label == 1
    # If rows without label were left out, there are none to remove.
    assert Split(["1"], ["a"], labels[:1], 7).take(np.array([0])).without_label == 7


# Training rows


@pytest.mark.parametrize("at_once", [4_096, 5])
def test_training_rows_come_from_train(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.audit.rows._ROWS_AT_ONCE", at_once)
    generator = np.random.default_rng(2)
    labels = (generator.random((12, 3)) < 0.4).astype(np.int8)
    labels[0] = 1
    embeddings = generator.normal(size=(14, 5)).astype(np.float32)  # train, validation, test
    texts = [f"text {i}" for i in range(12)]
    other = Split(["x"], ["text 3"], labels[:1])
    corpus = Corpus("c", "", NAMES, {"train": Split(texts, texts, labels), "validation": other, "test": other})
    rows = oversample(real_rows(embeddings[:12], labels), NAMES, "ismote", 0, 12)
    found = audit_corpus(corpus).report
    report = audit_rows(corpus, embeddings, rows, found)
    assert report["splits"]["test"]["texts_also_in_train"] == 1
    assert report["training_rows"]["synthetic"] == len(rows) - 12
    foreign = rows.parents.copy()
    foreign[-1, 1] = 12
    with pytest.raises(LeakError, match=r"outside the training split \(so in 1 of \d+ rows\)\. Remedy: report a bug"):
        audit_rows(corpus, embeddings, dataclasses.replace(rows, parents=foreign), found)
    honest = dataclasses.replace(rows, embeddings=rows.embeddings.copy(), parents=foreign)
    first, second = embeddings[foreign[-1]]
    honest.embeddings[-1] = first + rows.steps[-1] * (second - first)
    counted = audit_rows(corpus, embeddings, honest, found, contaminated=True)
    assert counted["training_rows"]["synthetic_with_parent_outside_train"] == 1
    foreign[-1, 1] = 14
    with pytest.raises(LeakError, match="not a row of the corpus"):
        audit_rows(corpus, embeddings, honest, found, contaminated=True)
    turned = rows.labels.copy()
    turned[:, [0, 1]] = turned[:, [1, 0]]
    with pytest.raises(LeakError, match="other labels"):
        audit_rows(corpus, embeddings, dataclasses.replace(rows, labels=turned), found)
    # A child of a test row that claims other parents.
    child = rows.embeddings.copy()
    child[-1] = generator.normal(size=5)
    with pytest.raises(LeakError, match="not what its parents give"):
        audit_rows(corpus, embeddings, dataclasses.replace(rows, embeddings=child), found)


@pytest.mark.parametrize("rule", choices("mlsmote_labels"))
def test_labels_that_mlsmote_cannot_have_given(rule: str) -> None:
    generator = np.random.default_rng(1)
    embeddings = generator.normal(size=(62, 5)).astype(np.float32)
    labels = (generator.random((60, 4)) < (0.9, 0.5, 0.5, 0.2)).astype(np.int8)
    labels[labels.sum(axis=1) == 0, 0] = 1
    names, texts = ("a", "b", "c", "d"), [f"text {i}" for i in range(60)]
    other = Split(["x"], ["another"], labels[:1])
    corpus = Corpus("c", "", names, {"train": Split(texts, texts, labels), "validation": other, "test": other})
    rows = oversample(real_rows(embeddings[:60], labels), names, "mlsmote", 0, 60, mlsmote_labels=rule)
    found = audit_corpus(corpus).report
    audit_rows(corpus, embeddings, rows, found, rule)
    first, second = (labels[rows.parents[:, side]] for side in (0, 1))
    made = rows.synthetic

    def refused(row: int, changed: np.ndarray) -> None:
        foreign = rows.labels.copy()
        foreign[row] = changed
        with pytest.raises(LeakError, match="labels"):
            audit_rows(corpus, embeddings, dataclasses.replace(rows, labels=foreign), found, rule)

    for row in np.flatnonzero(made)[:20]:
        refused(row, 1 - (first[row] & second[row]))  # has none of the labels that both parents have
        one_has = first[row] ^ second[row]
        if rule == "union" and one_has.any():
            refused(row, rows.labels[row] & ~one_has)  # lacks a label that one parent has
        if rule == "intersection":
            refused(row, rows.labels[row] | one_has if one_has.any() else np.ones(4, dtype=np.int8))
    refused(0, 1 - labels[0])  # a real row has its own labels under every rule
    assert (first[made] != second[made]).any() and not np.array_equal(rows.labels[made], first[made])


# The order of labels


def labeled(seed: int, size: int, counts: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings that show their labels, with noise; neighboring labels are similar."""
    labels = (np.random.default_rng(seed).random((size, len(counts))) < counts).astype(np.int8)
    directions = np.random.default_rng(0).normal(size=(len(counts), 16))
    directions[1:] += 0.5 * directions[:-1]
    noise = np.random.default_rng(seed + 1).normal(scale=2, size=(size, 16))
    return (labels @ directions + noise).astype(np.float32), labels


SHARES = [0.3, 0.2, 0.15, 0.1, 0.1, 0.01]
SIX = ("joy", "anger", "fear", "love", "pride", "grief")


@pytest.mark.parametrize("most", [50_000, 600])
def test_permuted_labels_are_found(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.audit.label_order.MOST_ROWS", most)
    train, (embeddings, labels) = labeled(1, 2_000, SHARES), labeled(7, 800, SHARES)
    assert suspect_labels(*train, embeddings, labels, SIX) == []
    swapped = labels[:, [1, 0, 2, 3, 4, 5]]
    (found,) = suspect_labels(*train, embeddings, swapped, SIX)
    assert found.meaning == {"joy": "anger", "anger": "joy"}
    assert "joy looks like anger" in str(found) and found.gain > 0.1
    (found,) = suspect_labels(*train, embeddings, labels[:, [1, 2, 3, 4, 0, 5]], SIX)
    assert found.meaning == {"joy": "anger", "anger": "fear", "fear": "love", "love": "pride", "pride": "joy"}
    # The last label has 8 rows: too few to tell.
    assert suspect_labels(*train, embeddings, labels[:, [0, 1, 2, 3, 5, 4]], SIX) == []


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), labels=st.integers(2, 24), size=st.sampled_from([100, 400, 1_500]))
def test_labels_that_cannot_be_learned_raise_no_alarm(seed: int, labels: int, size: int) -> None:
    generator = np.random.default_rng(seed)
    names = [f"label {i}" for i in range(labels)]
    shares = generator.uniform(0.02, 0.5, size=labels)
    train, other = ((generator.normal(size=(n, 8)), generator.random((n, labels)) < shares) for n in (1_000, size))
    assert suspect_labels(*train, *other, names) == []


# Two files


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = write(tmp_path / "a.jsonl", [{"text": "Well,  DONE", "labels": "joy"}, {"text": "no", "labels": "fear"}])
    train = tmp_path / "b.csv"
    train.write_text('text,labels\n"well done!",anger\nyes,joy\n', encoding="utf-8")
    assert main(["audit", test, str(train)]) == 1
    out = capsys.readouterr().out
    assert f"{test}: 1 of 2 rows have a copy (0 exact, 1 normalized, 0 near) in {train}" in out
    assert "1 of 1 copies have different labels" in out
    assert f"no row of {train} has: fear" in out and f"no row of {test} has: anger" in out
    assert f"{test}, line 1 [joy]\n    'Well,  DONE'" in out and f"{train}, line 2 [anger]\n    'well done!'" in out
    unlabelled = write(tmp_path / "c.jsonl", [{"text": "something else"}])
    assert main(["audit", test, unlabelled]) == 0
    assert "0 of 2 rows have a copy" in (out := capsys.readouterr().out) and "labels: not compared" in out


def test_two_files_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path / "good.jsonl", [{"text": "a"}])
    empty = write(tmp_path / "empty.jsonl", [{"text": " "}])
    for arguments, message in (
        ([good, str(tmp_path / "none.csv")], "no such file or folder"),
        ([good, str(tmp_path)], "is a folder, not .csv"),
        ([good, good, "--text_column", "body"], "no column 'body', only 'text'"),
        ([good, good, "--label_column", "emotion"], "no column 'emotion', only 'text'"),
        ([good, good, "--dataset", "goemotions"], "labels.txt is missing"),
        ([good, empty], "line 1, column 'text': the text is ' '"),
    ):
        assert main(["audit", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_the_command_explains_itself() -> None:
    command = [sys.executable, "training/run.py", "audit", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "PATHS" in shown and "Exit code" in shown and "70 % of" in shown


# GoEmotions


@pytest.fixture(scope="module")
def goemotions() -> Corpus:
    return load_corpus("goemotions", ["goemotions-28"])


@GOEMOTIONS
def test_goemotions_copies(goemotions: Corpus) -> None:
    audit = audit_corpus(goemotions)
    copies = audit.report["copies"]
    assert (copies["test_in_train"]["exact"], copies["validation_in_train"]["exact"]) == (37, 43)
    assert copies["test_in_train"]["rows"] == audit.copies["test"].sum() > 90
    assert audit.report["labels_without_positives"] == {"train": [], "validation": [], "test": []}


@GOEMOTIONS
def test_goemotions_labels_are_in_order(goemotions: Corpus) -> None:
    cached = CACHE / "use-multilingual-v3-0.2.1.sqlite"
    if not cached.is_file() or cached.stat().st_size < 100_000_000:
        pytest.skip("the embeddings of GoEmotions are not cached: they take minutes")
    encoder = load_encoder("use-multilingual-v3")
    embeddings = {name: encode(split.texts, encoder, CACHE) for name, split in goemotions.splits.items()}
    train, names = (embeddings["train"], goemotions["train"].labels), goemotions.labels
    for split in ("validation", "test"):
        assert suspect_labels(*train, embeddings[split], goemotions[split].labels, names) == []
    labels = goemotions["test"].labels
    joy, anger = names.index("joy"), names.index("anger")
    swapped = labels.copy()
    swapped[:, [joy, anger]] = labels[:, [anger, joy]]
    (found,) = suspect_labels(*train, embeddings["test"], swapped, names)
    assert found.meaning == {"joy": "anger", "anger": "joy"}
    rotated = suspect_labels(*train, embeddings["test"], np.roll(labels, 1, axis=1), names)
    assert sum(len(suspects.meaning) for suspects in rotated) > 20
