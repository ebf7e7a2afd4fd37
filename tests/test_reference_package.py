"""The reference's published package loads unchanged and gives the expected probabilities."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from modeling.infer import EmotionClassifier, PackageError
from tests.conftest import add_to_hub_cache, fake_encoder
from tests.reference_package import KEYS, LABELS, reference_probabilities, vision_backbone, write_reference_package

BACKBONE = "tiny/Mistral-3-2503"
TEXTS = ["I passed the exam!", "", "who ate my cake", "ah 🎂", "nobody answers"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    add_to_hub_cache(BACKBONE, vision_backbone(tmp_path_factory.mktemp("vision")))
    return BACKBONE


@pytest.fixture(params=KEYS.values(), ids=KEYS)
def reference(request: pytest.FixtureRequest, backbone: str, tmp_path: Path) -> Path:
    return write_reference_package(tmp_path / "reference", backbone, request.param, backbone)


@pytest.mark.parametrize("fuse", [True, False])
def test_the_references_package_loads_unchanged(reference: Path, fuse: bool, caplog: pytest.LogCaptureFixture) -> None:
    classifier = EmotionClassifier(reference, encoder=fake_encoder, fuse=fuse)
    expected = reference_probabilities(reference, torch.from_numpy(fake_encoder(TEXTS))).numpy()
    assert expected.std() > 0.05  # the adapter and the head are not zero
    np.testing.assert_allclose(classifier.predict_proba(TEXTS), expected, rtol=0, atol=1e-5)
    assert "left out 14 tensors of the vision tower" in caplog.text
    found = classifier.predict(TEXTS)
    assert found == classifier.predict(TEXTS, threshold=0.5) and classifier.labels == LABELS
    assert {label for label, p in zip(LABELS, expected[0], strict=True) if p >= 0.5} == set(found[0])


@pytest.mark.parametrize(
    "base_name", [f"{BACKBONE}-unsloth-bnb-4bit", f"{BACKBONE}-bnb-4bit".lower(), BACKBONE.lower(), None]
)
def test_the_adapter_names_the_4_bit_copy_of_its_backbone(backbone: str, tmp_path: Path, base_name: str) -> None:
    """Unsloth trains on a quantized copy of the backbone under another name, and the adapter has that name."""
    package = write_reference_package(tmp_path / "reference", backbone, "model.language_model.", base_name)
    assert EmotionClassifier(package, encoder=fake_encoder).predict_proba(TEXTS).shape == (len(TEXTS), 28)


def test_an_adapter_of_another_backbone(backbone: str, tmp_path: Path) -> None:
    package = write_reference_package(tmp_path / "reference", backbone, "model.language_model.", "tiny/other-bnb-4bit")
    with pytest.raises(PackageError, match=r"names a different backbone than config\.json: tiny/other-bnb-4bit"):
        EmotionClassifier(package, encoder=fake_encoder)


def test_its_encoder_is_use_v4(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = EmotionClassifier(reference)
    assert classifier.config.encoder == "use-v4"
    monkeypatch.setitem(sys.modules, "tensorflow_hub", None)
    with pytest.raises(ImportError, match=r"tensorflow_hub cannot be imported.*Remedy: pip install 'tensorflow-hub"):
        classifier.predict(TEXTS)
    offline = types.ModuleType("tensorflow_hub")

    def load(handle: str) -> None:
        raise URLError(f"no network for {handle}")

    offline.load = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorflow_hub", offline)
    with pytest.raises(OSError, match=r"universal-sentence-encoder/4 cannot be read.*Remedy: .*TFHUB_CACHE_DIR"):
        classifier.predict(TEXTS)


def test_it_loads_in_4_bit_on_request(reference: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("bitsandbytes")
    caplog.set_level("INFO")
    classifier = EmotionClassifier(reference, encoder=fake_encoder, quantization="nf4")
    expected = reference_probabilities(reference, torch.from_numpy(fake_encoder(TEXTS))).numpy()
    assert "10 of 10 linear layers in nf4" in caplog.text
    found = classifier.predict_proba(TEXTS)
    assert 1e-4 < np.abs(found - expected).max() < 0.3 and np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95
