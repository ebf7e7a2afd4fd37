"""Why a text has a label: the words, colored by what they add to the label's logit or take from it."""

from html import escape
from typing import Any

import gradio as gr

from hub_release.demo.page.results import message

_MAX_READ = 500_000
"""Characters that are read for an explanation, once for each word, so that nobody waits for long."""


def add_reasons(classifier: Any, found: gr.State) -> tuple[gr.Column, gr.Dropdown, gr.HTML]:
    """The control that chooses a label, and its words: hidden until a text is classified.

    Args:
        classifier: with ``explain``.
        found: the text that is shown with its probabilities, as (text, probabilities).
    """

    def explain(found: tuple[str, list[float]], label: str) -> str:
        if len(found[0]) * (len(found[0].split()) + 2) > _MAX_READ:
            return message("The text is too long to leave out each of its words. Remedy: try a shorter one.")
        try:
            return render_words(classifier.explain(found[0], label))
        except ValueError as error:  # the text has too many words
            return message(f"{error}.")

    with gr.Column(min_width=0, visible=False) as area:
        label = gr.Dropdown(label="Why this label?", info="See which words speak for it, and which against it.")
        button = gr.Button("Color the words")
        words = gr.HTML(elem_id="words", apply_default_css=False)
    gr.on([button.click, label.input], explain, [found, label], words, show_progress="minimal")
    return area, label, words


def render_words(explanation: Any) -> str:
    """A text with its words colored, what the colors mean, and the contributions as a table."""
    strongest = max(abs(word.contribution) for word in explanation.words) or 1.0
    text, end, rows = "", 0, ""
    for word in explanation.words:
        side, share = "for" if word.contribution > 0 else "against", abs(word.contribution) / strongest
        text += escape(explanation.text[end : word.start])
        text += (
            f'<mark class="{side}" style="--share:{share:.2f}" title="{word.contribution:+.3f}">{escape(word.text)}</mark>'
            if word.contribution
            else escape(word.text)
        )
        end = word.end
        rows += f'<tr><th scope="row">{escape(word.text)}</th><td class="figure">{word.contribution:+.3f}</td></tr>'
    return (
        f'<p class="words">{text}{escape(explanation.text[end:])}</p><div class="note"><p role="status">'
        f'<mark class="for" style="--share:1">Plain</mark> words speak for {escape(explanation.label)}, '
        '<mark class="against" style="--share:1">underlined</mark> words against it; the stronger the color, the more. '
        f"{escape(explanation.meaning)}</p><details><summary>Contributions in logits</summary>"
        f'<table class="contributions"><tbody>{rows}</tbody></table></details></div>'
    )
