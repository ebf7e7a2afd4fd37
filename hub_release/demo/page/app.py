"""The page for trying an emotion classifier: what ``hub_release demo`` serves, and a Space's ``app.py``.

In a Space it is next to the package's ``infer.py`` and imports nothing else of the project. It classifies with the
package that ``MODEL_ID`` names (a folder or a Hub id), by default with the model in the Space's own README.
"""

import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Protocol

import gradio as gr
import numpy as np
from huggingface_hub import metadata_load, snapshot_download

from hub_release.demo.page.files import (
    KINDS,
    OddInputError,
    is_about_emotions,
    read_card,
    read_details,
    read_examples,
    read_notes,
    read_upload,
    refuse_too_much,
)
from hub_release.demo.page.reasons import add_reasons
from hub_release.demo.page.results import message, rank, render_bars, render_table

MAX_SECONDS = 120
"""Time for the texts of one visit; the results that are there by then are shown."""
_PORTION = 20_000
"""Characters to classify between two looks at the clock."""
OWN, COMMON = "own", "common"


_ONLY_THIS_HOST = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
"""Content-Security-Policy: whatever a card or a text says, the browser loads nothing from another host."""
_Message = MutableMapping[str, Any]


class OnlyThisHost:
    """ASGI middleware that sends the page's Content-Security-Policy."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(
        self, scope: _Message, receive: Callable[[], Awaitable[_Message]], send: Callable[[_Message], Awaitable[None]]
    ) -> None:
        """Pass a request on, and add the policy to the answer."""

        async def send_with_policy(message: _Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _ONLY_THIS_HOST)]
            await send(message)

        await self.app(scope, receive, send_with_policy)


class Classifier(Protocol):
    """What the page needs from ``EmotionClassifier``."""

    config: Any
    labels: list[str]

    def predict_proba(self, texts: Iterable[str]) -> np.ndarray:
        """Probabilities, float32 [N, L]."""
        ...


_SEND_ON_CONTROL_ENTER = """<script>
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.tagName === "TEXTAREA")
    event.target.closest('[role="tabpanel"]').querySelector("button.primary").click();
});
</script>"""


def build_page(classifier: Classifier, folder: Path, name: str) -> gr.Blocks:
    """The page of a loaded package: one text, many texts, the model card.

    Args:
        classifier: the loaded package.
        folder: folder of its card, its golden texts and its scores per label.
        name: what to call it.
    """
    classifier.predict_proba([""])  # loads the encoder now, not at the first visitor's click
    # Uploaded files are checked every ten minutes, and deleted when they are an hour old.
    question = "Which emotions does a text express?" if is_about_emotions(folder) else "Which labels fit a text?"
    title = str(read_details(folder).get("title", question))
    with gr.Blocks(title=f"{name} · {title}", analytics_enabled=False, delete_cache=(600, 3_600)) as page:
        gr.HTML(
            f'<h1>{escape(title)}</h1><p class="lead">Write one and see. <b>{escape(name)}</b> '
            f"knows {len(classifier.labels)} labels. None, one or several can be true at once.</p>",
            apply_default_css=False,
        )
        with gr.Tab("One text"):
            _one_text(classifier, read_notes(folder), read_examples(folder))
        with gr.Tab("Many texts"):
            _many_texts(classifier)
        with gr.Tab("Model card"):
            gr.Markdown(read_card(folder) or "This package has no card that this page can show.", elem_id="card")
    return page


def _threshold_controls(show: Callable[..., str], found: gr.State, result: gr.HTML) -> tuple[gr.Radio, gr.Slider]:
    """The package's thresholds or one for all; a change shows the results again without classifying again."""
    choices = [("One for each label, tuned", OWN), ("One for all labels", COMMON)]
    info = "A label is predicted at this probability or above."
    policy = gr.Radio(choices, value=OWN, label="Thresholds", info=info)
    slider = gr.Slider(0, 1, 0.5, step=0.01, label="Threshold for all labels", buttons=[], visible=False)
    policy.change(lambda chosen: gr.Slider(visible=chosen == COMMON), policy, slider, show_progress="hidden")
    gr.on(
        [policy.change, slider.change],
        show,
        [found, policy, slider],
        result,
        show_progress="hidden",
        trigger_mode="always_last",
    )
    return policy, slider


def _one_text(classifier: Classifier, notes: dict[str, str], examples: list[str]) -> None:
    waiting = message("The labels will appear here, the likeliest first.")

    def classify(text: str, policy: str, threshold: float) -> tuple[Any, ...]:
        if not text.strip():
            return refuse("There is no text yet: write one, or pick an example.")
        try:
            refuse_too_much([text])
        except OddInputError as error:
            return refuse(str(error))
        found = text, classifier.predict_proba([text])[0].tolist()
        likeliest = [row.label for row in rank(classifier.config, classifier.labels, found[1], None)]
        chosen = gr.Dropdown(likeliest, value=likeliest[0])
        return found, show(found, policy, threshold), gr.Column(visible=can_explain), chosen, ""

    def refuse(why: str) -> tuple[Any, ...]:
        return None, message(why), gr.Column(visible=False), gr.skip(), ""

    def show(found: tuple[str, list[float]] | None, policy: str, threshold: float) -> str:
        if found is None:
            return waiting
        common = threshold if policy == COMMON else None
        return render_bars(rank(classifier.config, classifier.labels, found[1], common), notes)

    can_explain = hasattr(classifier, "explain")  # packages of earlier versions cannot
    found, result = gr.State(None), gr.HTML(waiting, elem_id="bars", apply_default_css=False, render=False)
    with gr.Row(elem_classes="sides"):
        with gr.Column(min_width=0):
            info = "Press Enter to classify, Shift+Enter to start a new line."
            text = gr.Textbox(label="Text", info=info, max_lines=12, autofocus=True, elem_id="text")
            button = gr.Button("Classify", variant="primary")
            policy, slider = _threshold_controls(show, found, result)
        with gr.Column(min_width=0, elem_classes="result"):
            result.render()
        outputs = [found, result, *add_reasons(classifier, found)]
        with gr.Column(min_width=0):
            examples_area = gr.Examples(examples, text, label="Examples") if examples else None
    inputs = [text, policy, slider]
    gr.on([text.submit, button.click], classify, inputs, outputs, show_progress="minimal")
    if examples_area:
        examples_area.load_input_event.then(classify, inputs, outputs, show_progress="minimal")


def _many_texts(classifier: Classifier) -> None:
    waiting = message("The table will appear here.")

    def classify(read: Callable[[], list[str]], source: str, policy: str, threshold: float) -> tuple[Any, str]:
        try:
            texts = read()
            kept = [text for text in texts if text.strip()]
            if not kept:
                return None, message(f"There are no texts {source}.")
            refuse_too_much(kept)
        except OddInputError as error:
            return None, message(str(error))
        probabilities = classify_in_time(classifier, kept)
        done = len(probabilities)
        if done < len(kept):
            source += f": the other {len(kept) - done:,} would have taken more than {MAX_SECONDS} seconds"
        found = (kept[:done], probabilities, source)
        return found, show(found, policy, threshold)

    def classify_lines(lines: str, policy: str, threshold: float) -> tuple[Any, str]:
        return classify(lambda: lines.split("\n"), "in the box", policy, threshold)

    def classify_file(path: str, policy: str, threshold: float) -> tuple[Any, str]:
        return classify(lambda: read_upload(Path(path)), f"in {Path(path).name}", policy, threshold)

    def show(found: tuple[list[str], list[list[float]], str] | None, policy: str, threshold: float) -> str:
        if found is None:
            return waiting
        texts, probabilities, source = found
        common = threshold if policy == COMMON else None
        results = [rank(classifier.config, classifier.labels, row, common) for row in probabilities]
        return render_table(classifier.labels, texts, results, source)

    found, result = gr.State(None), gr.HTML(waiting, elem_id="table", apply_default_css=False, render=False)
    with gr.Row(elem_classes="sides"):
        with gr.Column(min_width=0):
            info = "Press Control+Enter to classify them."
            lines = gr.Textbox(label="Texts, one per line", info=info, lines=8, max_lines=8, elem_id="lines")
            button = gr.Button("Classify all lines", variant="primary")
            file = gr.File(
                label="Or a file: CSV or TSV with a column “text”, JSON, or TXT", file_types=[*KINDS], height=150
            )
            policy, slider = _threshold_controls(show, found, result)
        with gr.Column(min_width=0, elem_classes="result"):
            result.render()
    button.click(classify_lines, [lines, policy, slider], [found, result], show_progress="minimal")
    file.upload(classify_file, [file, policy, slider], [found, result], show_progress="minimal")


def classify_in_time(classifier: Classifier, texts: Sequence[str]) -> list[list[float]]:
    """Probabilities of the texts, in order, as far as :data:`MAX_SECONDS` allow; at least those of the first portion."""
    end, found = time.monotonic() + MAX_SECONDS, list[list[float]]()
    for portion in _portions(texts):
        if found and time.monotonic() > end:
            break
        found += classifier.predict_proba(portion).tolist()
    return found


def _portions(texts: Sequence[str]) -> Iterator[list[str]]:
    portion: list[str] = []
    for text in texts:
        if portion and sum(map(len, portion)) + len(text) > _PORTION:
            yield portion
            portion = []
        portion.append(text)
    yield portion


def _theme() -> gr.Theme:
    # The semi-bold fonts that gradio bundles have few letters; the bold ones have all.
    font = gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700))
    theme = gr.themes.Default(primary_hue="indigo", neutral_hue="slate", font=[font, "sans-serif"])
    # By default the hints below labels, and the button's text, are too pale to read.
    return theme.set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )


def launch(page: gr.Blocks, **options: Any) -> None:
    """Serve the page until it is interrupted; it contacts no other hosts.

    Args:
        page: from :func:`build_page`.
        options: of ``gradio.Blocks.launch``: where to serve.
    """
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    page.launch(
        theme=_theme(),
        # In the head, because gradio rewrites the selectors of its own option "css".
        head=f"<style>{style}</style>{_SEND_ON_CONTROL_ENTER}",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        max_file_size="5mb",
        app_kwargs={"middleware": [(OnlyThisHost, (), {})]},
        **options,
    )


def main() -> None:
    """Serve the Space's package."""
    from infer import EmotionClassifier  # only a Space has it next to this file

    metadata = metadata_load(Path(__file__).with_name("README.md")) or {}
    name = os.environ.get("MODEL_ID") or metadata["models"][0]
    folder = Path(name) if Path(name).is_dir() else Path(snapshot_download(name))
    launch(build_page(EmotionClassifier(folder), folder, name))


if __name__ == "__main__":
    main()
