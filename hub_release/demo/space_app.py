"""The page on which an emotion classifier can be tried: what ``hub_release demo`` serves, and a Space's ``app.py``.

In a Space it stands beside the package's ``infer.py`` and imports nothing else of the project. It classifies with the
package that ``MODEL_ID`` names (a folder or a Hub id), by default with the model of the Space's own README.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import gradio as gr
import numpy as np
from huggingface_hub import metadata_load, snapshot_download

MAX_TEXTS = 1_000
ROWS_SHOWN = 200
CHARACTERS_SHOWN = 300
OWN, COMMON = "own", "common"


class Classifier(Protocol):
    """What the page asks of ``EmotionClassifier``."""

    config: Any
    labels: list[str]

    def predict_proba(self, texts: Iterable[str]) -> np.ndarray:
        """Probabilities, float32 [N, L]."""
        ...


class Row(NamedTuple):
    """One label's result for one text."""

    label: str
    probability: float
    threshold: float
    unreliable: bool

    @property
    def predicted(self) -> bool:
        """Whether the probability reaches the threshold."""
        return self.probability >= self.threshold


class OddInputError(ValueError):
    """Input that cannot be classified; the message, shown on the page, says what to do."""


# Results as HTML. Whatever stems from a user or a package passes through ``escape``.


def rank(config: Any, labels: Sequence[str], probabilities: Sequence[float], common: float | None) -> list[Row]:
    """Results of one text, highest probability first; ``common`` replaces the package's thresholds."""
    rows = [
        Row(
            label,
            probability,
            config.thresholds.get(label, config.threshold) if common is None else common,
            label in config.unreliable_labels,
        )
        for label, probability in zip(labels, probabilities, strict=True)
    ]
    return sorted(rows, key=lambda row: -row.probability)


def message(text: str) -> str:
    """A line in place of results."""
    return f'<p class="message" role="status">{escape(text)}</p>'


def render_bars(rows: list[Row], notes: dict[str, str]) -> str:
    """Predicted labels as chips, then a table with a bar for every label and its threshold as a tick."""
    chips = "".join(_chip(row) for row in rows if row.predicted)
    verdict = f'<span class="sr">Predicted: </span>{chips}' if chips else "No label reaches its threshold."
    body = "".join(_bar(row) for row in rows)
    return (
        f'<p class="verdict" role="status">{verdict}</p>'
        '<table class="bars"><caption class="sr">Probability of every label, highest first</caption>'
        '<thead><tr><th scope="col">Label</th><th scope="col" colspan="2">Probability<span class="key">'
        f'<i class="tick"></i>threshold</span></th></tr></thead><tbody>{body}</tbody></table>'
        f"{_why_unreliable(rows, notes)}"
    )


def _chip(row: Row) -> str:
    mark = '<abbr title="unreliable label, see below">†</abbr>' if row.unreliable else ""
    kind = "chip unreliable" if row.unreliable else "chip"
    return f'<span class="{kind}"><b>{escape(row.label)}</b>{mark} {row.probability:.3f}</span> '


def _bar(row: Row) -> str:
    kinds = " ".join(kind for kind in ("predicted", "unreliable") if getattr(row, kind))
    said = f"{row.probability:.3f}, threshold {row.threshold:.3f}, {'predicted' if row.predicted else 'not predicted'}"
    mark = '<abbr title="unreliable label, see below">†</abbr>' if row.unreliable else ""
    return (
        f'<tr class="{kinds}" data-label="{escape(row.label)}"><th scope="row">{escape(row.label)}{mark}</th>'
        f'<td><div class="track" role="img" aria-label="{said}" title="{said}">'
        f'<div class="fill" style="width:{100 * row.probability:.1f}%"></div>'
        f'<i class="tick" style="left:{100 * min(row.threshold, 1):.1f}%"></i></div></td>'
        f'<td class="figure">{"✓ " if row.predicted else ""}{row.probability:.3f}</td></tr>'
    )


def _why_unreliable(rows: list[Row], notes: dict[str, str]) -> str:
    doubtful = sorted(row.label for row in rows if row.unreliable)
    if not doubtful:
        return ""
    which = f"{len(doubtful)} of {len(rows)} labels {'is' if len(doubtful) == 1 else 'are'}"
    which = "All labels are" if len(doubtful) == len(rows) else which
    items = "".join(f"<li><b>{escape(label)}</b> {escape(notes.get(label, ''))}</li>" for label in doubtful)
    return (
        f'<details class="note"><summary>† {which} unreliable: too few test rows, or too uncertain a score, to say how '
        f"often the model is right. Show why</summary><ul>{items}</ul></details>"
    )


def render_table(labels: Sequence[str], texts: list[str], results: list[list[Row]], source: str) -> str:
    """Many results: a link to the CSV, and a table of the predicted labels of each text."""
    body = "".join(
        f'<tr><td class="figure">{number}</td><td>{escape(_shorten(text))}</td>'
        f"<td>{''.join(_chip(row) for row in rows if row.predicted) or '<i>none</i>'}</td></tr>"
        for number, (text, rows) in enumerate(zip(texts[:ROWS_SHOWN], results, strict=False), start=1)
    )
    more = f" The first {ROWS_SHOWN} are shown, the CSV has all." if len(texts) > ROWS_SHOWN else ""
    encoded = base64.b64encode(write_csv(labels, texts, results)).decode()
    return (
        f'<div class="summary"><p role="status">{len(texts):,} text{"s" * (len(texts) != 1)} {escape(source)}.{more}</p>'
        f'<a class="download" download="emotions.csv" href="data:text/csv;base64,{encoded}">Download CSV</a></div>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Results"><table class="many">'
        '<thead><tr><th scope="col">#</th><th scope="col">Text</th><th scope="col">Predicted labels</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _shorten(text: str) -> str:
    return text if len(text) <= CHARACTERS_SHOWN else text[:CHARACTERS_SHOWN] + " …"


# Files


def write_csv(labels: Sequence[str], texts: list[str], results: list[list[Row]]) -> bytes:
    """Text, predicted labels (joined by ``; ``), and the probability of every label; UTF-8 with the mark Excel needs."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["text", "predicted", *labels])
    for text, rows in zip(texts, results, strict=True):
        probabilities = {row.label: f"{row.probability:.6f}" for row in rows}
        predicted = "; ".join(row.label for row in rows if row.predicted)
        writer.writerow([text, predicted, *(probabilities[label] for label in labels)])
    return buffer.getvalue().encode("utf-8-sig", "replace")


def read_texts(path: Path) -> list[str]:
    """Texts of a CSV file (column ``text``, or its only column), a JSONL file, or the lines of a text file.

    Raises:
        OddInputError: the file is of another kind, not UTF-8, or holds no texts; the message names the line.
    """
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise OddInputError(f"{path.name} is not UTF-8 text. Save it as UTF-8 and try again.") from None
    if path.suffix.lower() == ".csv":
        return _read_csv(content, path.name)
    if path.suffix.lower() == ".jsonl":
        return [
            _read_json(line, number, path.name) for number, line in enumerate(content.split("\n"), 1) if line.strip()
        ]
    return [line.rstrip("\r") for line in content.split("\n")]


def _read_csv(content: str, name: str) -> list[str]:
    try:
        rows = [row for row in csv.reader(io.StringIO(content, newline=""), strict=True) if row]
    except csv.Error as error:
        raise OddInputError(f"{name} is not a CSV file: {error}.") from None
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if "text" in header:
        column = header.index("text")
        return [row[column] if column < len(row) else "" for row in rows[1:]]
    if all(len(row) == 1 for row in rows):
        return [row[0] for row in rows]
    raise OddInputError(
        f"{name} has no column “text”, only {', '.join(header)}. Name the column with the texts “text”."
    )


def _read_json(line: str, number: int, name: str) -> str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise OddInputError(f"Line {number} of {name} is not JSON: {error.msg}.") from None
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise OddInputError(f'Line {number} of {name} has no text. Write {{"text": "…"}} on every line.')
    return text


def _read_optional(path: Path) -> str:
    """Content of a file that a package of the reference's six does not have."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def read_notes(folder: Path) -> dict[str, str]:
    """How each label did on the test rows, in words, from the package's ``per_label.csv``."""
    table = csv.DictReader(io.StringIO(_read_optional(folder / "per_label.csv")))
    return {
        row["label"]: f"{row['support']} test rows, F1 {float(row['f1']):.2f} "
        f"(95 % interval {float(row['f1_low']):.2f} to {float(row['f1_high']):.2f})"
        for row in table
        if (row["split"], row["thresholds"]) == ("test", "per_label")
    }


def read_examples(folder: Path) -> list[str]:
    """Up to six short texts of the package's ``golden.json``."""
    rows = json.loads(_read_optional(folder / "golden.json") or '{"rows": []}')["rows"]
    return [row["text"] for row in rows if 0 < len(row["text"]) <= 100][:6]


def read_card(folder: Path) -> str:
    """The model card without its metadata; pictures of the package are put into the text."""

    def embed(found: re.Match[str]) -> str:
        picture = (folder / found[2]).resolve()
        if not (picture.is_file() and picture.is_relative_to(folder.resolve())):
            return found[1]
        return f"![{found[1]}](data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()})"

    body = re.sub(r"\A---\n.*?\n---\n", "", _read_optional(folder / "README.md"), flags=re.DOTALL)
    return re.sub(r"!\[([^\]]*)\]\(([^):]+\.png)\)", embed, body)


# The page

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
        folder: where its card, its golden texts and its scores per label lie.
        name: what to call it.
    """
    classifier.predict_proba([""])  # loads the encoder now, not within the first visitor's click
    # Files that were given are looked at every ten minutes, and deleted when they are an hour old.
    with gr.Blocks(title=f"{name} · emotions", analytics_enabled=False, delete_cache=(600, 3_600)) as page:
        gr.HTML(
            f'<h1>Which emotions does a text carry?</h1><p class="lead">Write one and see. <b>{escape(name)}</b> knows '
            f"{len(classifier.labels)} labels, of which none, one or several can be true at once.</p>",
            apply_default_css=False,
        )
        with gr.Tab("One text"):
            _one_text(classifier, read_notes(folder), read_examples(folder))
        with gr.Tab("Many texts"):
            _many_texts(classifier)
        with gr.Tab("Model card"):
            gr.Markdown(read_card(folder) or "This package has no card.", elem_id="card")
    return page


def _threshold_controls(show: Callable[..., str], found: gr.State, result: gr.HTML) -> tuple[gr.Radio, gr.Slider]:
    """The package's thresholds or one for all; what was found is shown anew, not classified anew, when they change."""
    choices = [("Each label its own, tuned", OWN), ("One for all labels", COMMON)]
    info = "A label is predicted from this probability on."
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
    waiting = message("The emotions will stand here, the likeliest first.")

    def classify(text: str, policy: str, threshold: float) -> tuple[list[float], str]:
        if not text.strip():
            return [], message("There is no text yet: write one, or pick an example.")
        probabilities = classifier.predict_proba([text])[0].tolist()
        return probabilities, show(probabilities, policy, threshold)

    def show(probabilities: list[float], policy: str, threshold: float) -> str:
        if not probabilities:
            return waiting
        common = threshold if policy == COMMON else None
        return render_bars(rank(classifier.config, classifier.labels, probabilities, common), notes)

    found, result = gr.State([]), gr.HTML(waiting, elem_id="bars", apply_default_css=False, render=False)
    with gr.Row(elem_classes="sides"):
        with gr.Column(min_width=0):
            info = "Enter classifies; Shift+Enter starts a new line."
            text = gr.Textbox(label="Text", info=info, max_lines=12, autofocus=True, elem_id="text")
            button = gr.Button("Classify", variant="primary")
            policy, slider = _threshold_controls(show, found, result)
        with gr.Column(min_width=0, elem_classes="result"):
            result.render()
        with gr.Column(min_width=0):
            examples_area = gr.Examples(examples, text, label="Examples") if examples else None
    triggers = [text.submit, button.click]
    gr.on(triggers, classify, [text, policy, slider], [found, result], show_progress="minimal")
    if examples_area:
        examples_area.load_input_event.then(classify, [text, policy, slider], [found, result], show_progress="minimal")


def _many_texts(classifier: Classifier) -> None:
    waiting = message("The table will stand here.")

    def classify(texts: list[str], source: str, policy: str, threshold: float) -> tuple[Any, str]:
        kept = [text for text in texts if text.strip()]
        if not kept:
            return None, message(f"There are no texts {source}.")
        if len(kept) > MAX_TEXTS:
            return None, message(
                f"{len(kept):,} texts are more than this page takes at once ({MAX_TEXTS:,}). In the package's folder, "
                "python infer.py --input FILE takes any number."
            )
        found = (kept, classifier.predict_proba(kept).tolist(), source)
        return found, show(found, policy, threshold)

    def classify_lines(lines: str, policy: str, threshold: float) -> tuple[Any, str]:
        return classify(lines.split("\n"), "in the box", policy, threshold)

    def classify_file(path: str, policy: str, threshold: float) -> tuple[Any, str]:
        try:
            return classify(read_texts(Path(path)), f"in {Path(path).name}", policy, threshold)
        except OddInputError as error:
            return None, message(str(error))

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
            info = "Control+Enter classifies them."
            lines = gr.Textbox(label="Texts, one a line", info=info, lines=8, max_lines=8, elem_id="lines")
            button = gr.Button("Classify all lines", variant="primary")
            kinds = [".csv", ".txt", ".jsonl"]
            file = gr.File(label="Or a file: CSV with a column “text”, TXT, JSONL", file_types=kinds, height=150)
            policy, slider = _threshold_controls(show, found, result)
        with gr.Column(min_width=0, elem_classes="result"):
            result.render()
    button.click(classify_lines, [lines, policy, slider], [found, result], show_progress="minimal")
    file.upload(classify_file, [file, policy, slider], [found, result], show_progress="minimal")


def _theme() -> gr.Theme:
    # The semi-bold files that gradio bundles hold few letters; the bold ones hold all.
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
    """Serve the page until it is interrupted; it asks nothing of other hosts.

    Args:
        page: from :func:`build_page`.
        options: of ``gradio.Blocks.launch``: where to serve.
    """
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    page.launch(
        theme=_theme(),
        # In the head, for gradio rewrites the selectors of its own option "css".
        head=f"<style>{style}</style>{_SEND_ON_CONTROL_ENTER}",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        max_file_size="5mb",
        **options,
    )


def main() -> None:
    """Serve the package that the Space is about."""
    from infer import EmotionClassifier  # only a Space has it beside this file

    metadata = metadata_load(Path(__file__).with_name("README.md")) or {}
    name = os.environ.get("MODEL_ID") or metadata["models"][0]
    folder = Path(name) if Path(name).is_dir() else Path(snapshot_download(name))
    launch(build_page(EmotionClassifier(folder), folder, name))


if __name__ == "__main__":
    main()
