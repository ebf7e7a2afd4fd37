"""The warning where texts are in another language than the training rows: once, and only there."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from tokenizers import Tokenizer

from hub_release.card.render import write_card
from hub_release.check.gate import inspect
from hub_release.export import export
from modeling.infer import EmotionClassifier, tokenize, usual_characters_per_token
from modeling.infer.language import LanguageWatch
from tests.conftest import ROOT, tiny_flags
from training.run import main

pytestmark = pytest.mark.usefixtures("pixels")

ITALIAN = (
    "Non riesco ancora a crederci, abbiamo vinto la partita!",
    "Mi dispiace moltissimo per quello che ti è successo.",
    "Che schifo, c'è un capello lungo nella minestra.",
    "Ho paura di restare da sola in questa vecchia casa.",
    "Grazie mille per il regalo, sei sempre gentilissima.",
    "Perché nessuno risponde alle mie lettere da settimane?",
    "Sono orgogliosa di mia figlia, si è laureata ieri.",
    "Basta, sono stanco delle tue scuse ogni mattina.",
    "Che sorpresa trovarti qui dopo tutti questi anni!",
    "Il treno parte alle nove dal binario quattordici.",
    "Mi manca mio nonno, soprattutto la domenica a pranzo.",
    "Questa torta al limone è la migliore del quartiere.",
    "Domani devo parlare davanti a tutti e tremo già.",
    "Hanno chiuso la fabbrica e nessuno ci ha avvisati.",
    "Ti voglio bene, anche quando litighiamo per niente.",
    "Meno male, il dottore ha detto che non è grave.",
    "Vorrei tanto rivedere il mare prima dell'inverno.",
    "Non capisco come funziona questo nuovo telefono.",
    "Complimenti, il tuo racconto mi ha fatto piangere.",
    "Hai visto che disastro hanno combinato in cucina?",
)
"""Written for this test."""


def starter(split: str) -> list[str]:
    """The texts of a split of the starter corpus, which is English."""
    lines = (ROOT / "training" / "data" / "starter" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(ROOT / "modeling" / "pretrained" / "goemotions-small" / "tokenizer.json"))


@pytest.fixture(scope="module")
def english(tokenizer: Tokenizer) -> list[float]:
    """What English training rows have."""
    rows = starter("train")
    return usual_characters_per_token(rows, tokenize(tokenizer, rows, 1))


def warns(usual: list[float], tokenizer: Tokenizer, *batches: list[str]) -> bool:
    """Does a new watch warn over these batches?"""
    watch = LanguageWatch(usual)
    for batch in batches:
        watch.look(batch, tokenize(tokenizer, batch, 1))
    return watch.warned


def test_another_language_and_not_english(english: list[float], tokenizer: Tokenizer) -> None:
    assert warns(english, tokenizer, list(ITALIAN))
    for split in ("validation", "test"):
        rows = starter(split)
        assert not any(warns(english, tokenizer, rows[start : start + 20]) for start in range(0, 180, 20))
    # Two fifths of a batch are not most of it.
    assert not warns(english, tokenizer, [*ITALIAN, *starter("test")[:30]])
    assert warns(english, tokenizer, [*ITALIAN, *starter("test")[:8]])


def test_what_is_not_a_language(english: list[float], tokenizer: Tokenizer) -> None:
    """Padding, short texts, blank texts and few texts say nothing."""
    assert not warns(english, tokenizer, [text.ljust(300) for text in starter("test")])
    assert not warns(english, tokenizer, ["Grazie!", "Ciao 😀", "", " " * 99] * 50)
    assert not warns(english, tokenizer, list(ITALIAN[:15]))
    assert not warns([], tokenizer, list(ITALIAN))


def test_training_rows_in_another_language(tokenizer: Tokenizer) -> None:
    """The range is that of the rows, in whatever language; rows in two languages have both."""
    texts = {"it": list(ITALIAN), "en": starter("train")[:20]}
    ranges = {name: usual_characters_per_token(rows, tokenize(tokenizer, rows, 1)) for name, rows in texts.items()}
    assert not warns(ranges["it"], tokenizer, list(ITALIAN))
    assert warns(ranges["it"], tokenizer, starter("test")[:40])
    both = texts["it"] + texts["en"]
    usual = usual_characters_per_token(both, tokenize(tokenizer, both, 1))
    assert not any(warns(usual, tokenizer, rows) for rows in texts.values())
    assert usual_characters_per_token(both[:15], tokenize(tokenizer, both[:15], 1)) == []


@given(cuts=st.lists(st.integers(1, 25), min_size=1, max_size=40))
def test_batches_of_any_size(cuts: list[int], english: list[float], tokenizer: Tokenizer) -> None:
    """A stream warns once it has had enough texts, however it comes, and once only."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("modeling.infer.language")
    logger.addHandler(handler)
    try:
        watch, seen = LanguageWatch(english), 0
        for size in cuts:
            batch = [ITALIAN[place % len(ITALIAN)] for place in range(seen, seen + size)]
            watch.look(batch, tokenize(tokenizer, batch, 1))
            seen += size
        assert len(records) == int(watch.warned) == int(seen >= 16)
    finally:
        logger.removeHandler(handler)


def test_threads_and_copies_warn_once_each(
    english: list[float], tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    watch, tokens = LanguageWatch(english), tokenize(tokenizer, ITALIAN, 1)
    start = threading.Barrier(8)

    def look() -> None:
        start.wait()
        for _ in range(50):
            watch.look(ITALIAN, tokens)

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(caplog.records) == 1
    copy = deepcopy(watch)
    assert copy.usual == watch.usual and not copy.warned
    copy.look(ITALIAN, tokens)
    assert copy.warned and len(caplog.records) == 2
    said = caplog.records[0].getMessage()
    assert "of 20 texts have fewer than" in said and "Remedy: use a model that reads one embedding" in said


# Packages


@pytest.fixture(scope="module")
def words(finished_run: Path, tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of a backbone that reads words, with graphs."""
    base = tmp_path_factory.mktemp("language")
    flags = tiny_flags(finished_run.parent / "corpus", tiny_backbone, base / "run")
    assert main([*flags, "--input", "tokens", "--balance", "none", "--token_norm", "0"]) == 0
    export(base / "run", base / "package", ["onnx", "openvino"], max_loss=1)
    return base / "package"


HOME = [f"train {number} sunny cake slammed door" for number in range(16)]
ABROAD = [f"a b c d e f g h i j {number}" for number in range(16)]
"""The tiny tokenizer has a token for each word of the corpus, and one for each letter that stands alone."""


@pytest.fixture
def loudly(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level(logging.WARNING, "modeling.infer.language")
    yield caplog


@pytest.mark.parametrize("backend", ["torch", "onnx", "openvino"])
def test_a_package_knows_its_training_rows(words: Path, backend: str, loudly: pytest.LogCaptureFixture) -> None:
    classifier = EmotionClassifier(words, backend=backend)
    low, high = classifier.config.characters_per_token
    assert 2 < low < high < 9
    assert f"have {low:.2f} to {high:.2f} characters per token" in (words / "README.md").read_text(encoding="utf-8")
    classifier.predict(HOME)
    assert not loudly.records
    before = pickle.dumps(classifier._watch)
    for _ in range(3):
        classifier.predict(ABROAD)
    assert [record.name for record in loudly.records] == ["modeling.infer.language"]
    assert pickle.dumps(classifier._watch) == before  # a map over datasets knows its own results again


def test_a_package_of_one_embedding_does_not_say(package: Path, loudly: pytest.LogCaptureFixture) -> None:
    """Its encoder reads several languages, and it has no tokenizer."""
    classifier = EmotionClassifier(package)
    assert classifier.config.characters_per_token == []
    assert "characters per token" not in (package / "README.md").read_text(encoding="utf-8")
    classifier.predict(ABROAD)
    assert not loudly.records


def test_a_package_of_an_earlier_version_is_silent(
    words: Path, tmp_path: Path, loudly: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copytree(words, tmp_path / "package")
    content = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    assert content.pop("characters_per_token")
    (copy / "config.json").write_text(json.dumps(content), encoding="utf-8")
    write_card(copy)
    assert inspect(copy) == []
    EmotionClassifier(copy).predict(ABROAD)
    assert not loudly.records


@pytest.mark.parametrize("module", ["infer", "infer_onnx"])
def test_a_fresh_process_warns_once(words: Path, module: str) -> None:
    """With nothing but the package's own file, and without a logger of its own."""
    code = f"from {module} import EmotionClassifier\nclassifier = EmotionClassifier('.')\n"
    code += f"for texts in ({HOME!r}, {ABROAD!r}, {ABROAD!r}):\n    classifier.predict_proba(texts)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=words, capture_output=True, text=True, check=True)
    assert done.stderr.count("characters per token") == 1
