"""The comparison widget, on the shipped adapter; browser tests move the same controls by hand."""

import io
import json
import shutil
from dataclasses import replace

import pytest
from made_up_tasks import tasks_about
from PIL import Image
from scripted import let_it_say
from shipped import TRAFFIC

from helpers import models
from helpers.data import Message, Task, count_answer, counting_tasks, read_counts
from helpers.evaluation.side_by_side import read_gallery
from helpers.files import UsageError
from helpers.models.policies import SHIPPED_POLICIES, Policies, find_policies
from helpers.report.html import gallery_html
from helpers.rewards import Ranker, ScorerRanker, count_exact
from helpers.rewards.scoring import make_scorer
from helpers.widgets.comparison import ALIKE, LIKELIER_TOKENS, SUGGESTED_QUESTIONS, Comparison

generates = pytest.mark.heavy(reason="both policies answer after each move")


@pytest.fixture(scope="module")
def policies():
    return Policies(*models.load_model("tiny"), find_policies("tiny", TRAFFIC))


@pytest.fixture(scope="module")
def tasks():
    return counting_tasks(read_counts(TRAFFIC, "test")[:8])


@pytest.fixture
def comparison(policies, tasks, artifacts):
    return Comparison(policies, tasks, questions=["Is there a car in the image?"])


def upload(comparison, content, name="a.jpg"):
    """What FileUpload holds in either version."""

    class Upload:
        value = (
            {name: {"content": content}}
            if isinstance(comparison.upload.value, dict)
            else ({"content": memoryview(content)},)
        )

    comparison.upload = Upload()
    comparison._take_upload()


def photo(size=(200, 100)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (90, 90, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


@generates
def test_it_shows_all_answers_at_once_and_again_after_each_move(comparison, tasks):
    assert (
        list(comparison.state["answers"]) == ["base", "dpo/shipped"]
        and comparison.state["right"]["dpo/shipped"]
    )
    assert "truth</b> " in comparison.answers.value and bytes(comparison.picture.value).startswith(
        b"\xff\xd8"
    )
    picture = comparison.picture.value
    comparison.item.value = 3
    assert comparison.picture.value != picture and comparison.question.value == tasks[3].question
    comparison.suggestion.value = "Is there a car in the image?"
    assert (
        comparison.state["answers"]["base"] in ("Yes.", "No.")
        and comparison.state["right"]["base"] is None
    )
    comparison.item.value = 5
    assert comparison.question.value == tasks[5].question, "the next image brings its own question"


@generates
def test_switching_the_policies_asks_those(comparison):
    comparison.names.value = ["dpo/shipped"]
    assert (
        list(comparison.state["answers"]) == ["dpo/shipped"]
        and "base</b>" not in comparison.answers.value
    )
    comparison.names.value = []
    assert list(comparison.state["answers"]) == ["base"], "without a choice the base speaks"


@generates
def test_every_decoding_control_changes_what_is_asked(comparison):
    comparison.max_new_tokens.value = 3
    assert (
        all(len(s.tokens) == 3 for s in comparison.state["spoken"])
        and "cut after 3 tokens" in comparison.answers.value
    )
    comparison.max_new_tokens.value = 64
    comparison.temperature.value = 2.0
    texts = set()
    for seed in range(5):
        comparison.seed.value = seed
        texts.add(comparison.state["answers"]["base"])
    assert len(texts) > 1
    comparison.top_p.value = 0.05
    narrow = comparison.state["answers"]["base"]
    comparison.temperature.value, comparison.top_p.value = 0.0, 1.0
    assert comparison.state["answers"]["base"] == narrow, "a narrow nucleus is greedy"


@generates
def test_figures_and_token_colours_are_those_of_the_answers(comparison):
    spoken = comparison.state["spoken"][1]
    assert (
        f"log p {spoken.logp:.2f}" in comparison.answers.value
        and "KL to it" in comparison.answers.value
    )
    comparison.marks.value = LIKELIER_TOKENS
    assert comparison.answers.value.count("<span title='log p") == sum(
        len(s.tokens) for s in comparison.state["spoken"]
    )


@generates
def test_a_reward_is_shown_where_there_is_one(policies, tasks, artifacts):
    reward = make_scorer("length", lambda image, question, answer, facts: {"length": len(answer)})
    comparison = Comparison(policies, tasks, {"length": reward})
    assert f"reward {len(comparison.state['answers']['base'])}.00" in comparison.answers.value


@generates
def test_an_upload_is_asked_about_and_has_no_known_truth(comparison):
    upload(comparison, photo())
    assert (
        "not known for this image" in comparison.answers.value
        and comparison.state["right"]["base"] is None
    )
    comparison.item.value = 2
    assert comparison.state["right"]["base"] is not None, "a held-out image again"


@generates
def test_a_file_that_is_no_picture_is_an_error_in_the_widget_and_the_next_question_works(
    comparison,
):
    upload(comparison, b"<html>", "page.html")
    assert "cannot be read" in comparison.state["error"] and "Error:" in comparison.message.value
    comparison.item.value = 1
    assert "answers" in comparison.state and "Error" not in comparison.message.value


@generates
def test_running_the_cell_again_brings_back_what_was_set(comparison, policies, tasks):
    comparison.item.value, comparison.temperature.value, comparison.seed.value = 4, 0.8, 7
    comparison.question.value = "How many buses?"
    upload(comparison, photo((64, 64)))
    again = Comparison(policies, tasks)
    assert (again.item.value, again.temperature.value, again.seed.value) == (4, 0.8, 7)
    assert (
        again.question.value == "How many buses?"
        and again.state["answers"] == comparison.state["answers"]
    )
    assert "not known for this image" in again.answers.value
    fewer = Comparison(policies, tasks[:2])
    assert fewer.item.value == 1, "a setting that no longer fits is brought into range"


@generates
def test_kept_examples_are_files_that_can_be_read_and_shown(comparison, artifacts):
    comparison.keep.click()
    comparison.keep.click()
    comparison.item.value = 1
    comparison.keep.click()
    first, second = read_gallery(artifacts / "gallery")
    assert second.spoken == comparison.state["spoken"] and first.truth == comparison.tasks[0].facts
    assert "2 in" in comparison.message.value
    page = gallery_html(artifacts / "gallery", [first, second])
    assert page.count("<img") == 2 and "dpo/shipped" in page
    (artifacts / "gallery" / "broken.json").write_text(json.dumps({"image": "x"}))
    with pytest.raises(UsageError, match=r"broken\.json: not an example"):
        read_gallery(artifacts / "gallery")


@generates
def test_a_missing_picture_is_an_error_in_the_widget_and_is_not_kept(
    policies, tasks, artifacts, tmp_path
):
    lost = [replace(tasks[0], images=(tmp_path / "gone.png",)), tasks[1]]
    comparison = Comparison(policies, lost)
    assert "gone.png does not exist" in comparison.state["error"]
    comparison.marks.value = LIKELIER_TOKENS
    comparison.keep.click()
    assert "no answer to keep" in comparison.message.value and not read_gallery(
        artifacts / "gallery"
    )
    comparison.item.value = 1
    assert list(comparison.state["answers"]) == ["base", "dpo/shipped"]


@generates
def test_adapters_of_another_folder_join(comparison, tmp_path):
    shutil.copytree(SHIPPED_POLICIES, tmp_path / "more" / "ppo" / "mine")
    before = comparison.state["answers"]
    comparison.folder.value = str(tmp_path / "more")
    assert "ppo/mine" in comparison.names.options and comparison.state["answers"] == before, (
        "the choice stays"
    )
    comparison.names.value = ["base", "ppo/mine"]
    assert list(comparison.state["answers"]) == ["base", "ppo/mine"]
    comparison.folder.value = str(tmp_path / "nowhere")
    assert "no adapter" in comparison.state["error"]


@pytest.fixture
def free(policies, artifacts, tmp_path):
    """Questions of which nobody has said what is right; one with two images and two turns."""
    tasks = tasks_about(tmp_path, ["a", "b", "c"])
    turns = (
        Message(role="user", content="Is it a house?"),
        Message(role="assistant", content="Yes."),
        Message(role="user", content="What colour is it?"),
    )
    tasks.append(Task(tasks[0].images + tasks[1].images, turns))
    return Comparison(policies, tasks, questions=["Is it red?"])


def test_without_a_truth_nothing_is_said_of_it(free):
    assert set(free.state["right"].values()) == {None} and "truth" not in free.answers.value
    suggested = [SUGGESTED_QUESTIONS, *(task.question for task in free.tasks), "Is it red?"]
    assert list(free.suggestion.options) == suggested


def test_several_images_and_turns_are_shown_asked_and_kept(free, artifacts):
    free.item.value = 2
    alone = bytes(free.picture.value)
    free.item.value = 3
    assert "assistant: Yes.<br>user: What colour is it?" in free.answers.value
    shown = Image.open(io.BytesIO(bytes(free.picture.value)))
    assert shown.width == 2 * Image.open(io.BytesIO(alone)).width
    free.keep.click()
    free.question.value = "How large is it?"
    assert "user: How large is it?" in free.answers.value, "the earlier turns stay"
    free.question.value = " "
    assert "question is empty" in free.state["error"]
    (kept,) = read_gallery(artifacts / "gallery")
    assert len(kept.images) == 2 and tuple(kept.turns) == free.tasks[3].turns
    page = gallery_html(artifacts / "gallery", [kept])
    assert page.count("<img") == 2 and "truth" not in page and "assistant: Yes." in page


def test_a_text_is_the_truth_of_its_own_question_only(policies, artifacts, tmp_path):
    comparison = Comparison(policies, tasks_about(tmp_path, ["a"], ["grey", "gray"], "exact_match"))
    assert comparison.state["right"] == {"base": False, "dpo/shipped": False}
    assert "<b>truth</b> grey" in comparison.answers.value
    comparison.question.value = "Is it large?"
    assert comparison.state["right"]["base"] is None and "not known" in comparison.answers.value
    comparison.keep.click()
    (kept,) = read_gallery(artifacts / "gallery")
    assert (kept.truth, kept.truth_kind) == (None, "none")


# --- the best of several answers ---

last_number = make_scorer(
    "bicycles", lambda image, question, answer, facts: {"bicycles": int(answer.split()[-5])}
)


def said_by_hand(tasks):
    """Answers with the true counts but for the bicycles, of which there are 0 to 3, by number."""
    texts = {}
    for bicycles in range(4):
        texts[bicycles] = count_answer({**tasks[0].facts, "bicycles": bicycles})
    return texts


@pytest.fixture
def by_hand(policies, tasks, artifacts, monkeypatch):
    """The widget with a judge that likes many bicycles; of 4 samples one is right (with none)."""
    texts = said_by_hand(tasks)
    assert tasks[0].facts["bicycles"] == 0
    said = [texts[0], texts[2], texts[2], texts[1]]
    comparison = Comparison(policies, tasks, {"bicycles": last_number})
    comparison.asked = let_it_say(monkeypatch, policies.processor, said)
    return comparison


def test_the_best_is_shown_and_the_others_follow_in_order(by_hand, tasks):
    """Of 0, 2, 2, 1 bicycles the judge takes 2 (share 2 of 4), then 1, then the right answer, 0."""
    by_hand.number.value = 4
    texts = said_by_hand(tasks)
    ranked = by_hand.state["ranked"]["base"].texts
    assert [(one.text, one.place, one.score, one.times) for one in ranked] == [
        (texts[2], 1, 2.0, 2),
        (texts[1], 2, 1.0, 1),
        (texts[0], 3, 0.0, 1),
    ]
    assert by_hand.state["answers"] == {"base": texts[2], "dpo/shipped": texts[2]}
    assert by_hand.state["right"] == {"base": False, "dpo/shipped": False}
    shown = by_hand.answers.value
    assert shown.count("best of 4 by bicycles") == shown.count("score 2.000 · share 2 of 4") == 2
    assert shown.count("<summary>2 other answers, ranked</summary>") == 2 and "tie" not in shown
    assert shown.index(f"✗ {texts[1]}") < shown.index(f"✓ {texts[0]}")
    assert shown.count("right: 1 of 4") == shown.count("bicycles is wrong here") == 2
    assert by_hand.asked == [4, 4], "one call a policy"
    assert "<b>cost</b> 8 answers sampled in 0." in shown and "; 6 texts ranked in " in shown


def test_the_menu_changes_who_ranks_and_a_tie_is_called_one(by_hand, tasks):
    """To the heuristic, which knows no counts, all three texts are as good."""
    by_hand.number.value = 4
    assert [title for title, _ in by_hand.ranker.options] == ["bicycles", "heuristic"]
    by_hand.ranker.value = dict(by_hand.ranker.options)["heuristic"]
    shown = by_hand.answers.value
    assert by_hand.state["answers"]["base"] == said_by_hand(tasks)[0], "the first one sampled"
    assert shown.count("tie: 3 answers share the first place") == 2
    assert shown.count("<td style='padding:2px 8px;text-align:left'>1 (tie)</td>") == 4
    assert "is wrong here" not in shown and "by heuristic" in shown


def test_one_answer_is_what_it_was(by_hand):
    """`asked` counts calls of the sampler of several."""
    before, state = by_hand.answers.value, by_hand.state
    assert by_hand.number.value == 1 and by_hand.ranker.disabled and by_hand.asked == []
    by_hand.number.value = 2
    assert not by_hand.ranker.disabled and "best of 2" in by_hand.answers.value
    by_hand.number.value = 1
    assert by_hand.answers.value == before and by_hand.state == state
    assert by_hand.ranker.disabled and by_hand.asked == [2, 2]
    for word in ("best of", "cost", "details", "share"):
        assert word not in before
    assert "ranked" not in state and set(state) == {"answers", "right", "spoken"}


def test_nobody_is_told_the_truth_unless_the_name_says_so(policies, tasks, artifacts, monkeypatch):
    told = []

    def parts(image, question, answer, facts):
        told.append(facts)
        return {"none": 0.0}

    judges = {"curious": make_scorer("x", parts), "oracle": ScorerRanker(count_exact, "oracle")}
    comparison = Comparison(policies, tasks, judges)
    texts = said_by_hand(tasks)
    let_it_say(monkeypatch, policies.processor, [texts[1], texts[0]])
    comparison.number.value = 2
    assert set(told) == {None} and comparison.state["answers"]["base"] == texts[1]
    menu = dict(comparison.ranker.options)
    assert list(menu) == ["curious", "oracle (is told the truth)", "heuristic"]
    comparison.ranker.value = menu["oracle (is told the truth)"]
    assert comparison.state["answers"]["base"] == texts[0] and comparison.state["right"]["base"]
    assert "best of 2 by oracle (is told the truth)" in comparison.answers.value


def test_a_ranker_that_fails_is_one_line_and_the_next_move_works(
    policies, tasks, artifacts, monkeypatch
):
    let_it_say(monkeypatch, policies.processor, ["a", "b"])
    comparison = Comparison(policies, tasks, {"shy": Refuses("shy")})
    assert "error" not in comparison.state, "it is not asked about one answer"
    comparison.number.value = 2
    line = "shy cannot rank the answers (KeyError: 'key'). Correct it, or choose another."
    assert comparison.state == {"error": f"Error: {line}"}
    assert comparison.message.value.count("<div") == 1 and "KeyError" in comparison.message.value
    assert comparison.progress.layout.visibility == "hidden"
    comparison.ranker.value = dict(comparison.ranker.options)["heuristic"]
    assert comparison.state["answers"]["base"] == "a" and "Error" not in comparison.message.value


class Refuses(Ranker):
    def _rank(self, tasks, answers):
        raise KeyError("key")


def test_at_temperature_0_all_are_alike_and_it_is_said(by_hand):
    by_hand.number.value = 2
    assert ALIKE in by_hand.message.value
    by_hand.temperature.value = 1.0
    assert "temperature" not in by_hand.message.value


def test_how_many_and_who_ranks_come_back(by_hand, policies, tasks):
    by_hand.number.value = 4
    by_hand.ranker.value = dict(by_hand.ranker.options)["heuristic"]
    again = Comparison(policies, tasks, {"bicycles": last_number})
    assert (again.number.value, again.ranker.value.title) == (4, "heuristic")
    assert again.answers.value.count("best of 4 by heuristic") == 2
    path = by_hand.memory / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"number": 3, "ranker": "gone"}))
    other = Comparison(policies, tasks, {"bicycles": last_number})
    assert (other.number.value, other.ranker.value.title) == (1, "bicycles")


def test_the_best_about_an_upload_is_ranked_by_who_sees_it(policies, tasks, artifacts, monkeypatch):
    wide = make_scorer("wide", lambda image, *given: {"wide": float(image.width)})
    comparison = Comparison(policies, tasks, {"wide": wide})
    let_it_say(monkeypatch, policies.processor, ["a", "b"])
    comparison.number.value = 2
    upload(comparison, photo((200, 100)))
    assert comparison.state["ranked"]["base"].texts[0].score == 200.0
    assert "right:" not in comparison.answers.value, "nobody knows what is right"


def test_a_kept_example_says_that_it_is_the_best_of_several(by_hand, artifacts):
    by_hand.number.value = 4
    by_hand.keep.click()
    (kept,) = read_gallery(artifacts / "gallery")
    assert [(one.best_of, one.ranked_by) for one in kept.spoken] == [(4, "bicycles")] * 2
    assert gallery_html(artifacts / "gallery", [kept]).count("best of 4 by bicycles") == 2


@generates
def test_the_best_of_eight_of_the_model_itself(policies, tasks, artifacts):
    """The longest of the texts that came to their end; both policies, their samples add up to 8."""
    length = make_scorer("length", lambda image, question, answer, facts: {"length": len(answer)})
    comparison = Comparison(policies, tasks, {"length": length})
    comparison.temperature.value = 1.5
    comparison.number.value = 8
    for name, found in comparison.state["ranked"].items():
        ended = [one for one in found.texts if one.ended]
        assert found.texts[0].score == max(len(one.text) for one in ended)
        assert sum(one.times for one in found.texts) + found.empty == 8
        assert comparison.state["answers"][name] == found.texts[0].text
    assert len(comparison.state["ranked"]["base"].texts) > 1
    comparison.marks.value = LIKELIER_TOKENS
    assert "<span title='log p" in comparison.answers.value
    assert comparison.answers.value.count("best of 8 by length") == 2, "and the others stay"
