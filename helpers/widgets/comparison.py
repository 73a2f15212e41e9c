"""Base and trained policies side by side: pick or upload an image, ask, see what changed and by how much."""

import contextlib
import html
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import ipywidgets as w
from PIL import Image

from helpers.data import CountedImage, count_question, is_exact, question_for
from helpers.evaluation import (
    DecodingSettings,
    PolicyAnswer,
    ask_policies,
    read_gallery,
    save_gallery_item,
)
from helpers.files import UsageError, artifacts_dir, open_image, read_json, replace_file, write_json
from helpers.models import BASE_POLICY, Policies
from helpers.report import answer_figures, colored_tokens, format_counts, mark_changes, png_bytes
from helpers.rewards import Scorer, stated_counts

from .common import button, note, show, show_errors, uploaded_bytes

SUGGESTED_QUESTIONS, CHANGED_WORDS, LIKELIER_TOKENS = (
    "suggested questions …",
    "changed words",
    "tokens that got likelier, or less",
)


def is_answer_right(answer: str, question: str, truth: dict[str, int] | None) -> bool | None:
    """Are the counts right? None if none are known or stated.

    The question for all classes wants all of them; of any other, those that the answer states are checked.
    """
    if truth is None:
        return None
    if question in (count_question(list(truth), wording) for wording in (0, 1)):
        return is_exact(answer, truth)
    stated = {
        cls: numbers for cls, numbers in stated_counts(answer, list(truth)).items() if numbers
    }
    return all(set(numbers) == {truth[cls]} for cls, numbers in stated.items()) if stated else None


class Comparison:
    """Ask the base and any of its adapters about a held-out image or one's own; `show()` displays it.

    One base is in memory, adapters are switched. `reward` scores answers without a truth (a reward model).
    The settings and the own image are kept in `memory`, so that running the cell again brings them back;
    examples that are kept go to `gallery`. `state` holds what is shown.
    """

    def __init__(
        self,
        policies: Policies,
        items: Sequence[CountedImage],
        reward: Scorer | None = None,
        questions: Sequence[str] = (),
        memory: Path | None = None,
        gallery: Path | None = None,
    ):
        self.policies, self.items, self.reward = policies, items, reward
        self.memory = memory or artifacts_dir() / "widgets" / "comparison"
        self.gallery = gallery or artifacts_dir() / "gallery"
        self.state: dict = {}
        self._own: Image.Image | None = None
        self._spoken: list[PolicyAnswer] = []
        self._quiet = False
        self._make_controls([*dict.fromkeys([*map(self._question, (0, 1)), *questions])])
        self.box = self._lay_out()
        self._restore()
        self._listen()
        self._ask()

    # --- the controls ---

    def _make_controls(self, questions: Sequence[str]) -> None:
        wide, style = w.Layout(width="auto", max_width="900px"), {"description_width": "110px"}
        common = {"layout": wide, "style": style}
        slider = {"continuous_update": False, **common}
        names = self.policies.names
        self.item = w.IntSlider(0, 0, len(self.items) - 1, description="held-out image", **slider)
        self.upload = w.FileUpload(accept="image/*", multiple=False, description="own image")
        self.names = w.SelectMultiple(
            options=names, value=names[:2], rows=4, description="policies", **common
        )
        self.suggestion = w.Dropdown(
            options=[SUGGESTED_QUESTIONS, *questions], description="pick", **common
        )
        self.question = w.Text(description="question", continuous_update=False, **common)
        self.temperature = w.FloatSlider(
            0.0, min=0.0, max=2.0, step=0.1, description="temperature", **slider
        )
        self.top_p = w.FloatSlider(1.0, min=0.05, max=1.0, step=0.05, description="top-p", **slider)
        self.max_new_tokens = w.IntSlider(64, 1, 256, description="max tokens", **slider)
        self.seed = w.IntSlider(0, 0, 20, description="sampling seed", **slider)
        self.marks = w.Dropdown(
            options=[CHANGED_WORDS, LIKELIER_TOKENS], description="mark", **common
        )
        self.folder = w.Text(
            str(artifacts_dir()), description="adapters in", continuous_update=False, **common
        )
        self.keep = button("Keep this example", self._keep)
        self.picture = w.Image(
            format="png",
            layout=w.Layout(width="auto", height="auto", max_width="290px", max_height="300px"),
        )
        self.progress = w.IntProgress(
            0, 0, len(names), layout=w.Layout(width="auto", visibility="hidden")
        )
        self.answers = w.HTML(layout=w.Layout(width="auto", min_height="260px"))
        self.message = w.HTML(layout=w.Layout(min_height="24px"))

    def _lay_out(self) -> w.Widget:
        decoded = [self.temperature, self.top_p, self.max_new_tokens, self.seed]
        columns = [
            w.VBox(column, layout=w.Layout(flex="1 1 300px"))
            for column in ([self.item, self.upload, self.names], decoded)
        ]
        wide = [self.suggestion, self.question, self.marks, self.folder]
        controls = w.VBox(
            [w.HBox(columns, layout=w.Layout(flex_flow="row wrap")), *wide],
            layout=w.Layout(flex="1 1 480px"),
        )
        left = w.VBox([self.picture], layout=w.Layout(flex="0 0 300px", min_height="310px"))
        top = w.HBox([left, controls], layout=w.Layout(flex_flow="row wrap"))
        for name, part in vars(self).items():
            if isinstance(part, w.DOMWidget):
                part.add_class(f"compare-{name}")
        return w.VBox([top, self.progress, self.answers, w.HBox([self.keep, self.message])])

    def _listen(self) -> None:
        self.item.observe(self._pick, "value")
        self.upload.observe(self._take_upload, "value")
        self.suggestion.observe(self._suggest, "value")
        self.marks.observe(lambda _: self._draw(), "value")
        self.folder.observe(self._add_folder, "value")
        for control in (
            self.names,
            self.question,
            self.temperature,
            self.top_p,
            self.max_new_tokens,
            self.seed,
        ):
            control.observe(self._ask, "value")

    def show(self) -> None:
        """Display the widget; where no widgets run, its answers as plain HTML."""
        show(self.box, self._render_html())

    def _render_html(self) -> str:
        return f"<p><b>{html.escape(self.question.value)}</b></p>{self.answers.value}"

    # --- what they do ---

    def _question(self, wording: int) -> str:
        return question_for(self.items[0], wording)

    def _pick(self, _change=None) -> None:
        """Another held-out image comes with its own question."""
        self._own, self._quiet = None, True
        self.question.value = question_for(self.items[self.item.value], self.item.value)
        self._quiet = False
        self._ask()

    def _suggest(self, _change=None) -> None:
        if self.suggestion.value != SUGGESTED_QUESTIONS:
            self.question.value = self.suggestion.value

    def _take_upload(self, _change=None) -> None:
        content = uploaded_bytes(self.upload)
        if content is None:
            return
        with show_errors(self._fail):
            self._own = open_image(io.BytesIO(content), "upload")
            with replace_file(self.memory / "own.png") as temporary:
                self._own.save(temporary, "PNG")
            self._ask()

    def _add_folder(self, _change=None) -> None:
        """Adapters of another folder join those that there are."""
        with show_errors(self._fail), contextlib.redirect_stdout(io.StringIO()) as told:
            new, chosen, self._quiet = (
                self.policies.add_folder(Path(self.folder.value)),
                self.names.value,
                True,
            )
            self.names.options = self.policies.names
            self.names.value, self._quiet = chosen, False
            self.message.value = note(f"{told.getvalue()} {len(new)} more in {self.folder.value}")

    @property
    def decoding(self) -> DecodingSettings:
        return DecodingSettings(
            self.temperature.value, self.top_p.value, self.max_new_tokens.value, self.seed.value
        )

    def _image(self) -> Image.Image:
        return self._own or open_image(self.items[self.item.value].path)

    def _ask(self, _change=None) -> None:
        if self._quiet:
            return
        names = list(self.names.value) or [BASE_POLICY]
        self.progress.max, self.progress.value, self.progress.layout.visibility = (
            len(names),
            0,
            "visible",
        )
        self.message.value = note("thinking …")
        with show_errors(self._fail):
            image, self._spoken = self._image(), []
            self.picture.value = png_bytes(image)
            for name in names:
                self._spoken += ask_policies(
                    self.policies, [name], image, self.question.value, self.decoding, self.reward
                )
                self.progress.value += 1
            self._draw()
            self._remember()
            self.message.value = note("")
        self.progress.layout.visibility = "hidden"

    def _draw(self) -> None:
        truth = self.items[self.item.value].counts if self._own is None else None
        right = {
            s.policy: is_answer_right(s.text, self.question.value, truth) for s in self._spoken
        }
        self.state = {
            "answers": {s.policy: s.text for s in self._spoken},
            "right": right,
            "spoken": self._spoken,
        }
        cards = "".join(self._card(spoken, right[spoken.policy]) for spoken in self._spoken)
        known = "not known for this image" if truth is None else format_counts(truth)
        truth_line = f"<p style='margin:6px 4px'><b>truth</b> {html.escape(known)}</p>"
        self.answers.value = f"<div style='display:flex;flex-wrap:wrap'>{cards}</div>{truth_line}"

    def _card(self, answer: PolicyAnswer, right: bool | None) -> str:
        first, mark = (
            self._spoken[0],
            {True: "✓ counts right", False: "✗ not the truth", None: ""}[right],
        )
        words = mark_changes(
            first.text,
            (self._spoken[1] if answer is first and len(self._spoken) > 1 else answer).text,
        )
        text = words[0] if answer is first else words[1]
        text = colored_tokens(answer) if self.marks.value == LIKELIER_TOKENS else text
        return (
            "<div style='flex:1 1 280px;margin:4px;padding:6px 10px;border:1px solid #999;line-height:22px'>"
            f"<b>{html.escape(answer.policy)}</b> {mark}<br>{text}<br><small>{answer_figures(answer)}</small></div>"
        )

    def _fail(self, text: str) -> None:
        self.state = {"error": text}
        self.message.value, self.answers.value = note(text, error=True), note(text, error=True)

    # --- what stays ---

    def _keep(self) -> None:
        with show_errors(self._fail):
            if not self._spoken:
                raise UsageError("there is no answer to keep. Ask something first.")
            truth = self.items[self.item.value].counts if self._own is None else None
            path = save_gallery_item(
                self.gallery, self._image(), self.question.value, self.decoding, self._spoken, truth
            )
            self.message.value = note(
                f"kept as {path.name}: {len(read_gallery(self.gallery))} in {self.gallery}"
            )

    def _remember(self) -> None:
        values = {
            "item": self.item.value,
            "names": list(self.names.value),
            "question": self.question.value,
        }
        write_json(
            self.memory / "settings.json",
            values | asdict(self.decoding) | {"own": self._own is not None},
        )

    def _restore(self) -> None:
        """The settings of last time, as far as they fit; else those of the first item."""
        path = self.memory / "settings.json"
        saved = read_json(path) if path.exists() else {}
        self.question.value = saved.get("question") or self._question(0)
        for name in ("item", "temperature", "top_p", "max_new_tokens", "seed"):
            control = getattr(self, name)
            control.value = min(max(saved.get(name, control.value), control.min), control.max)
        self.names.value = [
            n for n in saved.get("names", ()) if n in self.policies.names
        ] or self.policies.names[:2]
        if saved.get("own") and (self.memory / "own.png").exists():
            self._own = open_image(self.memory / "own.png")
