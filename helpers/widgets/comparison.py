"""Base and trained policies side by side: pick or upload an image, ask, see what changed."""

import contextlib
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import ipywidgets as w
from PIL import Image

from helpers.data import Task, ask, conversation_text
from helpers.evaluation import (
    PolicyAnswer,
    Rightness,
    ask_for_best,
    ask_policies,
    blind_to_truth,
    read_gallery,
    save_gallery_item,
)
from helpers.files import UsageError, artifacts_dir, open_image, read_json, replace_file, write_json
from helpers.models import BASE_POLICY, DecodingSettings, Policies
from helpers.report import answer_figures, colored_tokens, mark_changes
from helpers.rewards import Ranker, RewardModel, Scorer, ScorerRanker, get_scorer

from .common import (
    Panel,
    button,
    in_row,
    jpeg_strip,
    labelled,
    note,
    picture_place,
    show,
    show_errors,
    slider,
    uploaded_bytes,
)
from .ranked_texts import cost_text, samples_html

SUGGESTED_QUESTIONS = "suggested questions …"
CHANGED_WORDS = "changed words"
LIKELIER_TOKENS = "tokens that got likelier, or less"
VERDICTS = {True: "✓ right", False: "✗ not the truth", None: ""}
SUGGESTED = 8  # questions of the data that are suggested
NUMBERS = (1, 2, 4, 8, 16)  # of sampled answers, the best of which is shown
HEURISTIC = "heuristic"  # who ranks if there is nobody else
ALIKE = "At temperature 0 all answers are alike: to choose among them, move it, for example to 1."


class Comparison(Panel):
    """Ask the base and any of its adapters about a held-out image or one's own.

    `show()` displays it. One base is in memory, adapters are switched. Of several sampled answers
    the best is shown, as one of the `judges` ranks them, or the heuristic; none is told the truth,
    but for a ranker of yours that is: then its name says so. The score of the first judge that
    gives one stands with every answer. The settings and the own image are kept in the artifacts, so
    that running the cell again brings them back, and so are examples. `state` holds what is shown.
    """

    def __init__(
        self,
        policies: Policies,
        tasks: Sequence[Task],
        judges: Mapping[str, Ranker | Scorer | RewardModel] | None = None,
        questions: Sequence[str] = (),
    ):
        self.policies = policies
        self.tasks = tasks
        self.rightness = Rightness(tasks)
        rankers = [blind_to_truth(judge, name) for name, judge in (judges or {}).items()]
        scorers = [ranker.score for ranker in rankers if isinstance(ranker, ScorerRanker)]
        self.reward = scorers[0] if scorers else None
        self.memory = artifacts_dir() / "widgets" / "comparison"
        self.gallery = artifacts_dir() / "gallery"
        self.state = {}
        self._own = None  # an image of the reader's own
        self._spoken = []  # the answers that are shown
        self._ranked = {}  # policy → its `BestAnswer`, where several were sampled
        # there is always somebody to rank
        if HEURISTIC not in [ranker.name for ranker in rankers]:
            rankers.append(ScorerRanker(get_scorer(HEURISTIC), told=False))
        # those of the data in use come first
        asked = list(dict.fromkeys(task.question for task in tasks))[:SUGGESTED]
        self._make_controls([*dict.fromkeys([*asked, *questions])], rankers)
        self.box = self._lay_out()
        self._restore()
        self._listen()
        self._ask()

    # --- the controls ---

    def _make_controls(self, questions: Sequence[str], rankers: Sequence[Ranker]) -> None:
        # what is asked, and of whom
        names = self.policies.names
        last = len(self.tasks) - 1
        self.item = slider(w.IntSlider, "held-out image", 0, 0, last)
        self.upload = w.FileUpload(accept="image/*", multiple=False, description="own image")
        self.names = labelled(w.SelectMultiple, "policies", options=names, value=names[:2], rows=4)
        suggestions = [SUGGESTED_QUESTIONS, *questions]
        self.suggestion = labelled(w.Dropdown, "pick", options=suggestions)
        self.question = labelled(w.Text, "question", continuous_update=False)
        # how the answers are sampled
        self.temperature = slider(w.FloatSlider, "temperature", 0.0, 0.0, 2.0, step=0.1)
        self.top_p = slider(w.FloatSlider, "top-p", 1.0, 0.05, 1.0, step=0.05)
        self.max_new_tokens = slider(w.IntSlider, "max tokens", 64, 1, 256)
        self.seed = slider(w.IntSlider, "sampling seed", 0, 0, 20)
        # how many, and who says which is the best
        self.number = labelled(
            w.SelectionSlider, "best of", options=NUMBERS, continuous_update=False
        )
        titled = [(ranker.title, ranker) for ranker in rankers]
        self.ranker = labelled(w.Dropdown, "ranked by", options=titled, disabled=True)
        # what is marked in them, and where more policies are
        self.marks = labelled(w.Dropdown, "mark", options=[CHANGED_WORDS, LIKELIER_TOKENS])
        self.folder = labelled(
            w.Text,
            "adapters in",
            value=str(artifacts_dir()),
            continuous_update=False,
        )
        self.keep = button("Keep this example", self._keep)
        # what is shown
        self.picture = picture_place("jpeg", "300px", "290px")
        self.progress = w.IntProgress(layout=w.Layout(width="auto", visibility="hidden"))
        self.answers = w.HTML(layout=w.Layout(width="auto", min_height="260px"))
        self.message = w.HTML(layout=w.Layout(min_height="24px"))

    def _lay_out(self) -> w.Widget:
        chosen = w.VBox([self.item, self.upload, self.names, self.ranker])
        sampling = [self.temperature, self.top_p, self.max_new_tokens, self.seed, self.number]
        decoded = w.VBox(sampling)
        chosen.layout.flex = decoded.layout.flex = "1 1 300px"
        wide = [self.suggestion, self.question, self.marks, self.folder]
        controls = w.VBox([in_row(chosen, decoded), *wide], layout=w.Layout(flex="1 1 480px"))
        left = w.VBox([self.picture], layout=w.Layout(flex="0 0 300px", min_height="310px"))
        # each part can be found in the page by its name
        for name, part in vars(self).items():
            if isinstance(part, w.DOMWidget):
                part.add_class(f"compare-{name}")
        below = w.HBox([self.keep, self.message])
        return w.VBox([in_row(left, controls), self.progress, self.answers, below])

    def _listen(self) -> None:
        self.on_change(self._pick, self.item)
        self.on_change(self._take_upload, self.upload)
        self.on_change(self._suggest, self.suggestion)
        self.on_change(self._draw, self.marks)
        self.on_change(self._add_folder, self.folder)
        self.on_change(
            self._ask,
            self.names,
            self.question,
            self.temperature,
            self.top_p,
            self.max_new_tokens,
            self.seed,
            self.number,
            self.ranker,
        )

    def show(self) -> None:
        """Display the widget; where no widgets run, its answers as plain HTML."""
        show(self.box, f"<p><b>{html.escape(self.question.value)}</b></p>{self.answers.value}")

    # --- what they do ---

    @property
    def _picked(self) -> Task:
        """The held-out task that the slider is at."""
        return self.tasks[self.item.value]

    @property
    def _shown(self) -> Task:
        """What is asked now: the picked task, another question about its images, or an upload.

        It has a truth where that of the picked task is one about this question.
        """
        picked = self._picked
        question = self.question.value.strip()
        if not question:
            raise UsageError("the question is empty. Type one, or pick one.")
        if self._own is not None:
            return ask(question, [self.memory / "own.png"])
        if question == picked.question:
            return picked
        # what was said before stays, the last question is replaced
        turns = (*picked.turns[:-1], *ask(question, []).turns)
        if self.rightness.is_about(picked, question):
            return replace(picked, turns=turns)
        return Task(picked.images, turns, group=picked.group)

    def _pick(self) -> None:
        """Another held-out image comes with its own question."""
        self._own = None
        with self.silence():
            self.question.value = self._picked.question
        self._ask()

    def _suggest(self) -> None:
        if self.suggestion.value != SUGGESTED_QUESTIONS:
            self.question.value = self.suggestion.value

    def _take_upload(self) -> None:
        content = uploaded_bytes(self.upload)
        if content is None:
            return
        with show_errors(self._fail):
            self._own = open_image(io.BytesIO(content), "upload")
            # kept, for when the cell is run again
            with replace_file(self.memory / "own.png") as temporary:
                self._own.save(temporary, "PNG")
            self._ask()

    def _add_folder(self) -> None:
        """Adapters of another folder join those that there are."""
        with show_errors(self._fail), contextlib.redirect_stdout(io.StringIO()) as told:
            new = self.policies.add_folder(Path(self.folder.value))
            chosen = self.names.value
            with self.silence():
                self.names.options = self.policies.names
                self.names.value = chosen
            self.message.value = note(f"{told.getvalue()} {len(new)} more in {self.folder.value}")

    @property
    def decoding(self) -> DecodingSettings:
        return DecodingSettings(
            self.temperature.value,
            self.top_p.value,
            self.max_new_tokens.value,
            self.seed.value,
        )

    def _images(self) -> list[Image.Image]:
        return self._picked.open_images() if self._own is None else [self._own]

    def _ask(self) -> None:
        # without a choice the base speaks
        names = list(self.names.value) or [BASE_POLICY]
        self.progress.max = len(names)
        self.progress.value = 0
        self.progress.layout.visibility = "visible"
        self.message.value = note("thinking …")
        # of a single answer there is nothing to rank
        self.ranker.disabled = self.number.value == 1
        with show_errors(self._fail):
            self._spoken = []
            self._ranked = {}
            task, images = self._shown, self._images()
            self.picture.value = jpeg_strip(images)
            # one policy after the other, so that the bar moves
            for name in names:
                self._spoken.append(self._ask_policy(name, task, images))
                self.progress.value += 1
            # what is on the screen is what comes back when the cell is run again
            self._draw()
            self._remember()
            alike = self._ranked and not self.temperature.value
            self.message.value = note(ALIKE if alike else "")
        self.progress.layout.visibility = "hidden"

    def _ask_policy(self, name: str, task: Task, images: Sequence[Image.Image]) -> PolicyAnswer:
        """The answer of one policy, or the best of several."""
        if self.number.value == 1:
            (answer,) = ask_policies(
                self.policies, [name], task, self.decoding, self.reward, images
            )
            return answer
        (self._ranked[name],) = ask_for_best(
            self.policies,
            [name],
            task,
            self.ranker.value,
            self.number.value,
            self.decoding,
            self.reward,
        )
        return self._ranked[name].answer

    def _draw(self) -> None:
        right = {}
        cards = ""
        for spoken in self._spoken:
            verdict = self._verdict(spoken.text)
            right[spoken.policy] = verdict
            cards += self._card(spoken, verdict)
        self.state = {
            "answers": {spoken.policy: spoken.text for spoken in self._spoken},
            "right": right,
            "spoken": self._spoken,
        }
        if self._ranked:
            self.state["ranked"] = self._ranked
        self.answers.value = (
            f"<div style='display:flex;flex-wrap:wrap'>{cards}</div>"
            f"<p style='margin:6px 4px'>{self._context()}</p>"
        )

    def _verdict(self, answer: str) -> bool | None:
        """Is the answer right? None for an image of one's own, or if nothing is known."""
        if self._own is not None:
            return None
        question = self.question.value.strip()
        return self.rightness.is_right_elsewhere(self._picked, question, answer)

    def _context(self) -> str:
        """Earlier turns as HTML, and the truth; where none is known at all, no word of it."""
        if not self._spoken:
            return ""
        task = self._shown
        # earlier turns, which the question alone does not tell
        lines = []
        if len(task.turns) > 1:
            earlier = html.escape(conversation_text(task.turns)).replace("\n", "<br>")
            lines.append(f"<b>asked</b><br>{earlier}")
        if self.rightness.is_known:
            known = self.rightness.truth(task) or "not known for this image and question"
            lines.append(f"<b>truth</b> {html.escape(known)}")
        if self._ranked:
            lines.append(f"<b>cost</b> {html.escape(cost_text([*self._ranked.values()]))}")
        return "<br>".join(lines)

    def _card(self, answer: PolicyAnswer, right: bool | None) -> str:
        """An answer as HTML, with what differs from the first one; the first against the second."""
        if self.marks.value == LIKELIER_TOKENS:
            text = colored_tokens(answer)
        elif answer is self._spoken[0]:
            text, _ = mark_changes(answer.text, self._spoken[:2][-1].text)
        else:
            _, text = mark_changes(self._spoken[0].text, answer.text)
        style = "flex:1 1 280px;margin:4px;padding:6px 10px;border:1px solid #999;line-height:22px"
        return (
            f"<div style='{style}'><b>{html.escape(answer.policy)}</b> {VERDICTS[right]}"
            f"<br>{text}<br><small>{answer_figures(answer)}</small>"
            f"{self._samples(answer.policy)}</div>"
        )

    def _samples(self, policy: str) -> str:
        """The other answers of a policy as HTML; nothing where only one was sampled."""
        if policy not in self._ranked:
            return ""
        found = self._ranked[policy]
        right = {text.text: self._verdict(text.text) for text in found.texts}
        return samples_html(found, right)

    def _fail(self, text: str) -> None:
        self.state = {"error": text}
        self.message.value = self.answers.value = note(text, error=True)

    # --- what stays ---

    def _keep(self) -> None:
        with show_errors(self._fail):
            if not self._spoken:
                raise UsageError("there is no answer to keep. Ask something first.")
            path = save_gallery_item(
                self.gallery,
                self._shown,
                self.decoding,
                self._spoken,
                self._images(),
            )
            kept = len(read_gallery(self.gallery))
            self.message.value = note(f"kept as {path.name}: {kept} in {self.gallery}")

    def _remember(self) -> None:
        values = {
            "item": self.item.value,
            "names": list(self.names.value),
            "question": self.question.value,
            "own": self._own is not None,
            "number": self.number.value,
            "ranker": self.ranker.value.title,
        }
        write_json(self.memory / "settings.json", values | asdict(self.decoding))

    def _restore(self) -> None:
        """The settings of last time, as far as they fit; else those of the first item."""
        path = self.memory / "settings.json"
        saved = read_json(path) if path.exists() else {}
        self.question.value = saved.get("question") or self._picked.question
        for name in ("item", "temperature", "top_p", "max_new_tokens", "seed"):
            # a setting that no longer fits is brought into range
            control = getattr(self, name)
            control.value = min(max(saved.get(name, control.value), control.min), control.max)
        if saved.get("number") in NUMBERS:
            self.number.value = saved["number"]
        for title, ranker in self.ranker.options:
            if title == saved.get("ranker"):
                self.ranker.value = ranker
        known = self.policies.names
        self.names.value = [name for name in saved.get("names", ()) if name in known] or known[:2]
        if saved.get("own") and (self.memory / "own.png").exists():
            self._own = open_image(self.memory / "own.png")
