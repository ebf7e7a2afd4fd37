"""Try a package in the browser: serve its page on this machine, or write the files of a Space that serves it."""

from __future__ import annotations

import importlib.metadata
import pickle
import shlex
from pathlib import Path
from types import ModuleType

from huggingface_hub import SpaceCardData, metadata_load

from hub_release.demo.page.files import is_about_emotions
from hub_release.package import LAYOUT, ReleaseError, require_folder
from hub_release.shipped.bundle import bundle
from modeling.infer import EmotionClassifier

_SPACE_CARD = Path(__file__).with_name("space_card.md")


def serve(package: Path, host: str, port: int | None, share: bool) -> None:
    """Serve the page of a package until it is interrupted.

    The classifier is this project's own: no code in the package is executed.

    Args:
        package: the package's folder.
        host: address to listen on; ``0.0.0.0`` lets other machines in.
        port: port to listen on; None takes the first free one from 7860.
        share: also create a public address through Gradio's tunnel, for 72 hours.

    Raises:
        ReleaseError: no package, no gradio, or no free port.
    """
    app = _import_app()
    require_folder(package)
    _require(package, LAYOUT.config)
    try:
        classifier = EmotionClassifier(package)
        page = app.build_page(classifier, package, package.resolve().name)
    except (ImportError, OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise ReleaseError(
            f"{package} cannot be loaded: {error}. Remedy: run {shlex.join(['hub_release', 'check', str(package)])}"
        ) from error
    try:
        app.launch(page, server_name=host, server_port=port, share=share)
    except OSError as error:
        raise ReleaseError(f"cannot listen on {host}: {error} Remedy: give another --port") from error


def space_files(package: Path, model_id: str) -> dict[str, bytes]:
    """Files of a Space that serves ``model_id``, by their names in the Space.

    The Space has its own ``infer.py``, so the code that it executes does not change when the model's repository does.

    Args:
        package: folder of the package that was pushed as ``model_id``.
        model_id: ``user/model``.

    Raises:
        ReleaseError: the package lacks a file that the Space needs, or gradio is not installed.
    """
    style = Path(str(_import_app().__file__)).with_suffix(".css")
    _require(package, LAYOUT.card, LAYOUT.code, LAYOUT.requirements)
    about_emotions = is_about_emotions(package)
    things = "emotions" if about_emotions else "labels"
    title = f"{things.capitalize()} with {model_id.rsplit('/', 1)[-1]}"
    metadata = SpaceCardData(
        title=title,
        emoji="🎭" if about_emotions else "🏷️",
        colorFrom="indigo",
        colorTo="yellow",
        sdk="gradio",
        sdk_version=importlib.metadata.version("gradio"),
        app_file="app.py",
        models=[model_id],
        license=(metadata_load(package / LAYOUT.card) or {}).get("license"),
        short_description="Which emotions does a text express?" if about_emotions else "Which labels fit a text?",
    )
    readme = f"---\n{metadata}\n---\n{_SPACE_CARD.read_text(encoding='utf-8').format(title=title, model_id=model_id, things=things)}"
    return {
        "README.md": readme.encode(),
        "app.py": bundle(("app",), "hub_release.demo.page").encode(),
        "app.css": style.read_bytes(),
        "infer.py": (package / LAYOUT.code).read_bytes(),
        "requirements.txt": (package / LAYOUT.requirements).read_bytes(),
    }


def _require(package: Path, *names: str) -> None:
    missing = [name for name in names if not (package / name).is_file()]
    if missing:
        raise ReleaseError(
            f"{package} is not a package: {', '.join(missing)} is missing. Remedy: run hub_release export RUN PACKAGE, "
            "or hub_release pull REPO_ID PACKAGE"
        )


def _import_app() -> ModuleType:
    """The page; gradio is an extra, and takes seconds to import."""
    try:
        from hub_release.demo.page import app
    except ImportError as error:
        raise ReleaseError(f"{error}. Remedy: pip install 'goemotions-mistral[demo]'") from error
    return app
