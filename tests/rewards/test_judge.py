"""A judge that is asked: both orders, majorities, abstentions, ratings, and what it costs."""

import dataclasses
import re

import pytest
import torch
from made_up_tasks import tasks_about
from shipped import TRAFFIC

from helpers import models, training
from helpers.config import SFT_PRESETS
from helpers.data import Judgement, Message, ask, read_records, tasks_of
from helpers.files import UsageError
from helpers.rewards import (
    JSON_PAIR_PROMPT,
    NUMBERED_PAIR_PROMPT,
    PAIR_PROMPT,
    CriteriaJudge,
    ModelReplies,
    PairJudge,
    Verifier,
    criteria_prompt,
    pair_gaps,
    pair_hits,
    parse_ratings,
    parse_verdict,
    rank_again,
    rank_samples,
)

TEXT = re.compile(r"\[Answer A\]\n(.*)\n\n\[Answer B\]\n(.*)\n")


class Asked:
    """A judge's replies, worked out from the two answers that it is shown; keeps what it saw."""

    def __init__(self, verdict):
        self.verdict, self.images, self.pairs = verdict, [], []

    def __call__(self, images, prompts):
        self.images += images
        shown = [TEXT.search(prompt).groups() for prompt in prompts]
        self.pairs += shown
        return [self.verdict(first, second) for first, second in shown]


def longer(first, second):
    return "[[A]]" if len(first) > len(second) else "[[B]]"


def test_all_pairs_are_shown_in_both_orders_with_their_images(tmp_path):
    tasks = tasks_about(tmp_path, ["x", "y"])
    ask_longer = Asked(longer)
    judge = PairJudge(ask_longer)
    first, second = judge.rank(tasks, [["a", "aaa", "aa"], ["bb", "b"]])
    assert first.ranking == [[1], [2], [0]] and second.ranking == [[0], [1]]
    assert first.confidence == second.confidence == 1.0
    assert sorted(ask_longer.pairs[:6]) == sorted(
        [("a", "aaa"), ("aaa", "a"), ("a", "aa"), ("aa", "a"), ("aaa", "aa"), ("aa", "aaa")]
    )
    assert ask_longer.pairs[6:] == [("bb", "b"), ("b", "bb")]
    assert ask_longer.images == [tasks[0].images] * 6 + [tasks[1].images] * 2
    assert judge.first_shown.value == 0.5 and not judge.is_biased and judge.unreadable.value == 0
    assert judge.cost.answers == 5 and judge.cost.seconds > 0 and judge.cost.tokens == 0


def test_a_judge_of_places_abstains_and_is_found_out(tmp_path):
    judge = PairJudge(Asked(lambda first, second: "[[A]]"))
    tasks = tasks_about(tmp_path, [str(k) for k in range(6)])
    ranked = judge.rank(tasks, [["a", "b"]] * 6)
    assert all(own.ranking is None and own.best == 0 for own in ranked)
    assert judge.first_shown.value == 1 and judge.is_biased
    assert "POSITION BIAS" in judge.sentences()[0]
    # asked in one order only, it would seem to have an opinion
    once = PairJudge(Asked(lambda first, second: "[[A]]"), orders="drawn", samples=1)
    assert all(own.ranking is not None for own in once.rank(tasks, [["a", "b"]] * 6))
    assert {reply.places for reply in once.replies} == {(0, 1), (1, 0)}


@pytest.mark.parametrize(
    ("replies", "ranking", "confidence"),
    [
        ("AABB", None, None),  # A A in one order, B B in the other: for both alike
        (["A", "B", "A", "B"], [[0], [1]], 1.0),  # the same answer in either order
        (["A", "?", "A", "B"], [[0], [1]], 0.75),
        (["A", "?", "?", "B"], None, None),  # two of four are no majority
        ("????", None, None),
        (["B", "A", "B", "?"], [[1], [0]], 0.75),
    ],
)
def test_majority_of_all_votes(tmp_path, replies, ranking, confidence):
    """Two samples of each order: first 0 1, 1 0, 0 1, 1 0."""
    said = iter(replies)
    judge = PairJudge(Asked(lambda *_: f"[[{next(said)}]]"), samples=2)
    (task,) = tasks_about(tmp_path, ["x"])
    (own,) = judge.rank([task], [["a", "b"]])
    if replies == "AABB":
        # (0, 1) A, (1, 0) A, (0, 1) B, (1, 0) B: two votes for each
        assert own.ranking is None
        return
    assert (own.ranking, own.confidence) == (ranking, confidence)


def test_circles_are_ties(tmp_path):
    """Scissors, paper, stone: each wins once, so that nothing is better."""
    beats = {("scissors", "paper"), ("paper", "stone"), ("stone", "scissors")}
    judge = PairJudge(Asked(lambda a, b: "[[A]]" if (a, b) in beats else "[[B]]"))
    (task,) = tasks_about(tmp_path, ["x"])
    (own,) = judge.rank([task], [["scissors", "paper", "stone"]])
    assert own.ranking == [[0, 1, 2]] and own.confidence is None


def test_what_a_reader_cannot_tell_apart_is_not_asked(tmp_path):
    asked = Asked(longer)
    (task,) = tasks_about(tmp_path, ["x"])
    (own,) = PairJudge(asked).rank([task], [["Two  cars.", "Two cars."]])
    assert own.ranking is None and asked.pairs == []


def test_the_order_is_drawn_from_seed_id_and_vote(tmp_path):
    tasks = tasks_about(tmp_path, [str(k) for k in range(20)])
    answers = [["a", "bb"]] * 20

    def orders(seed, number=20):
        judge = PairJudge(Asked(longer), orders="drawn", samples=3, seed=seed)
        judge.rank(tasks[:number], answers[:number])
        return [reply.places for reply in judge.replies]

    assert orders(1)[:15] == orders(1, 5) and orders(1) != orders(2)
    assert 15 < orders(1).count((0, 1)) < 45


def test_a_function_must_reply_to_each_prompt(tmp_path):
    tasks = tasks_about(tmp_path, ["x"])
    with pytest.raises(UsageError, match="1 replies to 2 prompts"):
        PairJudge(lambda images, prompts: ["[[A]]"]).rank(tasks, [["a", "b"]])
    with pytest.raises(UsageError, match="one text for each prompt"):
        PairJudge(lambda images, prompts: [None, None]).rank(tasks, [["a", "b"]])
    with pytest.raises(UsageError, match="samples = 0"):
        PairJudge(longer, samples=0)
    with pytest.raises(UsageError, match="1 lists of answers do not belong to 2 questions"):
        PairJudge(Asked(longer)).rank(tasks * 2, [["a", "b"]])


# --- ratings ---


def rated(by_answer):
    """Replies with the ratings of the answer in the prompt."""

    def reply(images, prompts):
        texts = [re.search(r"Answer: (.*)", prompt)[1] for prompt in prompts]
        return [by_answer[text] for text in texts]

    return reply


def test_ratings_are_means_over_criteria_and_samples(tmp_path):
    (task,) = tasks_about(tmp_path, ["x"])
    replies = {"good": "accuracy: 10\nclarity: 8", "bad": "accuracy: 2\nclarity: 9/10"}
    judge = CriteriaJudge(rated(replies), criteria=("accuracy", "clarity"))
    (own,) = judge.rank([task], [["bad", "good"]])
    assert own.ranking == [[1], [0]]
    assert [score.total for score in own.scores] == pytest.approx([0.55, 0.9])
    assert own.scores[1].parts == pytest.approx({"accuracy": 0.5, "clarity": 0.4})
    # the mean of what could be read
    said = iter(["accuracy: 4", "?", "accuracy: 8", "accuracy: 6", "accuracy: 6", "?"])
    judge = CriteriaJudge(
        lambda _, prompts: [next(said) for _ in prompts], samples=3, criteria=("accuracy",)
    )
    (own,) = judge.rank([task], [["one", "two"]])
    assert own.ranking == [[0, 1]] and [score.total for score in own.scores] == [0.6, 0.6]
    assert judge.sentences() == ["judge: 2 of 6 replies cannot be read."]


def test_an_answer_without_a_rating_leaves_its_question_unranked(tmp_path):
    tasks = tasks_about(tmp_path, ["x", "y"])
    replies = {"one": "accuracy: 5", "two": "I cannot say.", "three": "accuracy: 6"}
    judge = CriteriaJudge(rated(replies), criteria=("accuracy",))
    first, second = judge.rank(tasks, [["one", "two"], ["one", "three"]])
    assert first.ranking is None and first.scores == () and second.ranking == [[1], [0]]


@pytest.mark.parametrize(
    ("text", "ratings"),
    [
        ("accuracy: 8\nclarity: 3", {"accuracy": 8, "clarity": 3}),
        ("**Accuracy**: 8/10.\n- Clarity = 3.5", {"accuracy": 8, "clarity": 3.5}),
        ("accuracy: 8", None),
        ("accuracy: 8\nclarity: 11", None),
        ("accuracy: 8\nclarity: 0", None),
        ("accuracy: 8\naccuracy: 7\nclarity: 3", None),  # which one?
        ("accuracy: 8 or 9\nclarity: 3", None),
        ("The accuracy: 8\nclarity: 3", None),  # is a sentence
        ("accuracy: high\nclarity: 3", None),
        ("", None),
    ],
)
def test_parse_ratings(text, ratings):
    assert parse_ratings(text, ("accuracy", "clarity")) == ratings


# --- in records: AI feedback ---


def test_a_judges_verdicts_are_an_annotators(tmp_path):
    """Sampled answers, judged: records with rankings, and with what the judge said."""
    tasks = tasks_about(tmp_path, ["x", "y"])
    judge = PairJudge(Asked(longer), name="my judge")
    (record, other) = rank_samples(tasks, [["a", "aaa", "aa"], ["bb", "b"]], judge)
    assert record.ranking == [[1], [2], [0]] and other.ranking == [[0], [1]]
    (said,) = record.judgements
    assert said == Judgement(
        kind="model", annotator="my judge", verdict="ranked", ranking=[[1], [2], [0]]
    )
    # a judge that abstains has skipped; ratings are criteria
    silent = PairJudge(Asked(lambda *_: "?"), name="silent")
    (again, _) = rank_again([record, other], silent)
    assert again.ranking is None
    assert [(j.annotator, j.verdict) for j in again.judgements] == [
        ("my judge", "ranked"),
        ("silent", "skip"),
    ]
    rates = CriteriaJudge(rated({"a": "x: 2", "aaa": "x: 8", "aa": "x: 2"}), criteria=("x",))
    (rated_record,) = rank_again([record], rates)
    assert rated_record.judgements[1].criteria == {"x": [0.2, 0.8, 0.2]}
    assert rated_record.ranking == [[1], [0, 2]]
    # the same judge once more replaces what it said
    assert len(rank_again([rated_record], rates)[0].judgements) == 2


def test_a_local_model_replies_with_its_images_and_counts_tokens(tiny, valid_items):
    model, processor = tiny
    task = ask("Is there a car in the image?", [valid_items[0].path])
    replies = ModelReplies(model, processor, max_new_tokens=4)
    texts = replies([task.images, task.images], ["Is there a car in the image?"] * 2)
    assert texts == models.generate_answers(
        model, processor, [task.images] * 2, ["Is there a car in the image?"] * 2, max_new_tokens=4
    )
    count = len(processor.tokenizer("Is there a car in the image?")["input_ids"])
    assert replies.tokens == 2 * count + 2 * len(processor.tokenizer(texts[0])["input_ids"])
    judge = PairJudge(ModelReplies(model, processor, max_new_tokens=4))
    judge.rank([task], [["Yes.", "No."]])
    assert judge.cost.tokens > 0 and len(judge.replies) == 2


def test_prompts_hold_what_is_judged():
    text = PAIR_PROMPT.ask("How {many}?", "a {b}", "c")
    assert "Question: How {many}?" in text and "[Answer A]\na {b}\n" in text
    assert criteria_prompt("Why?", "So.", ("x", "y")).endswith("x: a number\ny: a number")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Both are fine, but A has more detail. [[A]]", "first"),
        ("Final verdict: [[B]]", "second"),
        ("Assistant A is better. [[b]]", "second"),  # the mark counts
        ("[[A]] if assistant A is better, [[B]] if assistant B is better", None),
        ("[[C]]", None),
        ("[[tie]]", None),
        ("B", "second"),
        (" **Answer 1**. ", "first"),
        ("Answer: 2", "second"),
        ("The second answer", "second"),
        ("3", None),
        ("Overall Judgment: Answer 2 is better.", "second"),
        ("### Overall Judgment\n**Answer 1 is superior** due to its accuracy.", "first"),
        ("Answer 1 is better in style. Overall Judgment: Answer 2 is slightly better.", "second"),
        ("Answer 1 is better in style. Answer 2 is better in detail.", None),
        ("Answer 1 is better in style. Overall judgement: both are equal.", None),
        ("Answer 1 is better than Answer 2.", "first"),
        ("The better response is Response B", "second"),
        ("The better answer is a matter of taste.", None),
        ("The better answer is 2 lines long.", None),
        ("Assistant B's response is clearly better", "second"),
        ("ANSWER 2 IS BETTER", "second"),
        ("Answer 1 is best described as short.", None),
        ("<think>Answer 1 is better? No.</think><answer>Answer 2 is better</answer>", "second"),
        ("<think>Hm.</think>\n<answer>1</answer>", "first"),
        ("Verdict: (A)", "first"),
        ("Answer 1 is not better.", None),
        ("It is hard to say whether Answer 1 is better.", None),
        ("I cannot say that Answer 2 is better.", None),
        ("Answer 12 is better.", None),
        ("Answer 1 and Answer 2 are equally good.", None),
        ("I am sorry, I cannot help with that.", None),
        ("", None),
    ],
)
def test_parse_verdict(text, verdict):
    assert parse_verdict(text) == verdict


@pytest.mark.parametrize("prompt", [PAIR_PROMPT, NUMBERED_PAIR_PROMPT, JSON_PAIR_PROMPT])
def test_a_judge_that_does_as_it_is_told_is_understood(prompt):
    text = prompt.ask("Why?", "uno", "due")
    assert text.index("Why?") < text.index("uno") < text.index("due")
    for reply, verdict in ((prompt.if_first, "first"), (prompt.if_second, "second")):
        assert prompt.read(reply) == prompt.read(f" {reply.rstrip('.').upper()}\n") == verdict
        assert reply in text and parse_verdict(reply) == verdict
    assert prompt.read("I cannot say.") is None
    # other forms are read as well
    assert prompt.read("Answer 2 is better.") == "second"
    assert parse_verdict('{"better_response": "tie"}') is None


# --- a verifier ---


def test_a_verifier_reads_how_likely_yes_is_behind_the_answer(tiny, valid_items):
    """By hand: the conversation with the answer and the question, and the two replies alone."""
    model, processor = tiny
    tasks = [ask("How many cars are in the image?", [item.path]) for item in valid_items[:2]]
    answers = [["There are 2 cars.", "There are 3 cars."], ["No."]]
    ranked = Verifier(model, processor).rank(tasks, answers)
    for task, texts, own in zip(tasks, answers, ranked, strict=True):
        for text, score in zip(texts, own.scores, strict=True):
            turns = [
                Message(role="user", content="How many cars are in the image?"),
                Message(role="assistant", content=text),
                Message(role="user", content="Is this right?"),
            ]
            packer = models.Packer(model, processor, packs=False)
            rows = packer([turns], [task.open_images()], [["Yes.", "No."]])
            with torch.no_grad():
                yes, no = models.answer_logps(model, rows).sum(1).tolist()
            assert score.total == pytest.approx(yes - no, abs=1e-3)
        assert own.tiers(len(texts))[own.best] == 0
    judged = rank_samples(tasks[:1], answers[:1], Verifier(model, processor, "v"))
    assert judged[0].judgements[0].annotator == "v"


def test_a_verifier_learns_from_both_answers_of_each_pair():
    records = read_records(TRAFFIC / "preferences_train.jsonl")[:3]
    rows = training.right_verdicts(records)
    pairs = [pair for record in records for pair in record.pairs()]
    assert len(rows) == 2 * len(pairs)
    texts = [(row["prompt"][1]["content"], row["completion"][0]["content"]) for row in rows]
    expected = []
    for pair in pairs:
        expected += [(pair.chosen.text, "Yes."), (pair.rejected.text, "No.")]
    assert texts == expected
    assert {row["prompt"][2]["content"] for row in rows} == {"Is this right?"}


@pytest.mark.heavy(reason="trains for a few seconds")
def test_an_adapter_that_verifies_moves_its_scores(tiny):
    """In twelve steps on four records it knows these by heart; the base is as before beside it."""
    records = read_records(TRAFFIC / "preferences_train.jsonl")[:4]
    model, processor = models.load_model("tiny")
    tasks = tasks_of(records)
    answers = [[answer.text for answer in record.answers] for record in records]
    before = Verifier(model, processor).rank(tasks, answers)
    settings = dataclasses.replace(
        SFT_PRESETS["tiny"], steps=40, learning_rate=3e-3, checkpoint_steps=0
    )
    trainer = training.sft_trainer(model, processor, training.right_verdicts(records), settings)
    training.train_sft(trainer)
    judge = trainer.model

    def hits(verifier):
        scores = [[score.total for score in own.scores] for own in verifier.rank(tasks, answers)]
        return pair_hits(pair_gaps(records, scores)).mean()

    assert hits(Verifier(judge, processor)) > 0.9
    base = Verifier(judge, processor, use=lambda: models.disable_adapters(judge))
    for one, other in zip(base.rank(tasks, answers), before, strict=True):
        assert [a.total for a in one.scores] == pytest.approx(
            [b.total for b in other.scores], abs=1e-3
        )
