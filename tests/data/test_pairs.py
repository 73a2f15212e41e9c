from pathlib import Path

import numpy as np
import pytest
from made_up import made_up_items, wrong_downwards
from PIL import Image
from shipped import TRAFFIC

from helpers.data import CountedImage, hub, read_counts
from helpers.data.blind import blind_rules
from helpers.data.counting import count_answer, is_exact, parse_counts
from helpers.data.pairs import (
    IMAGE_NEGATIVES,
    add_image_negatives,
    build_records,
    make_one_sided,
    one_class_answers,
    presence_question,
    question_for,
    spoil_image,
    swap_rankings,
    true_and_wrong_answers,
)
from helpers.data.preferences import read_records
from helpers.data.record import PreferenceRecord

CLASSES = ["cars", "buses"]


def test_the_true_answer_is_preferred_and_every_other_is_wrong():
    items = made_up_items()
    records = build_records(items, wrong_downwards(items), ("own", "edit", "other image"))
    for record, item in zip(records, items, strict=True):
        (best,) = record.ranking[0]
        assert (
            record.answers[best].text == count_answer(item.counts)
            and record.answers[best].origin == "truth"
        )
        assert all(not is_exact(p.rejected.text, item.counts) for p in record.pairs())
        assert record.truth == item.counts and record.group == item.group
        assert record.image_paths == [item.path]
    positions = [record.ranking[0][0] for record in records]
    assert 0 < np.mean([p == 0 for p in positions]) < 0.6, (
        "the position of the true answer is drawn"
    )


def test_an_image_whose_samples_are_all_right_has_no_own_answer(capsys):
    items = made_up_items(3)
    right = [[count_answer(item.counts)] for item in items]
    records = build_records(items, right, ("own", "other image"))
    assert {a.origin for r in records for a in r.answers} == {"truth", "other image"}
    assert build_records(items, right, ("own",)) == []
    assert "3 of 3 images give no pair" in capsys.readouterr().out


def test_a_well_formed_wrong_answer_is_taken_before_a_garbled_one():
    (item, other) = made_up_items(2)
    wrong = count_answer({**item.counts, "cars": item.counts["cars"] + 1})
    (record, _) = build_records([item, other], [["garble", wrong], ["garble"]], ("own",))
    assert [a.text for a in record.answers if a.origin == "own"] == [wrong]


def test_where_all_images_have_the_same_counts_wrong_ones_are_edited(capsys):
    """One plate in every image: another image's counts are right, too."""
    items = [CountedImage(i.path, {"cars": 1, "buses": 1}, i.group) for i in made_up_items(3)]
    records = build_records(items, [[]] * 3, ("own", "other image"))
    assert "All images have the same counts" in capsys.readouterr().out
    assert len(records) == 3
    for record in records:
        (wrong,) = [answer for answer in record.answers if answer.origin != "truth"]
        counts = parse_counts(wrong.text, ["cars", "buses"])
        assert wrong.origin == "edit" and counts not in (None, items[0].counts)


def test_kinds_that_do_not_exist_are_errors():
    items = made_up_items(3)
    with pytest.raises(ValueError, match="unknown kinds of negatives"):
        build_records(items, [[]] * 3, ("other",))


def test_spoilt_images_keep_their_size_and_lose_their_content():
    image = Image.open(TRAFFIC / "train" / "images" / "scene-000001.png").convert("RGB")
    pixels = np.asarray(image, dtype=float)
    rng = np.random.default_rng(0)
    spoilt = {
        k: np.asarray(spoil_image(image, k, rng), dtype=float) for k in ("blank", "blurred", "crop")
    }
    assert all(values.shape == pixels.shape for values in spoilt.values())
    assert spoilt["blank"].std() == 0
    detail = {k: np.diff(values, axis=1).std() for k, values in spoilt.items()}
    assert detail["blurred"] < 0.2 * np.diff(pixels, axis=1).std()
    assert 0.2 * np.diff(pixels, axis=1).std() < detail["crop"]  # enlarged, not blurred away
    with pytest.raises(ValueError, match="unknown kind 'dark'"):
        spoil_image(image, "dark", rng)


def test_image_negatives_are_written_beside_the_records(tmp_path, capsys):
    items = read_counts(TRAFFIC, "train")[:6]
    records = build_records(items, [[]] * 6, ("other image",))
    spoilt = add_image_negatives(records, tmp_path / "negatives", IMAGE_NEGATIVES)
    truths = {record.images[0]: record.truth for record in records}
    for record in spoilt:
        blank, crop, shuffled, blurred = record.negative_images
        assert blank == str(tmp_path / "negatives" / f"{record.id}-blank.png") and crop != blurred
        assert truths[shuffled] != record.truth, (
            "with an equal truth the answer would be right there"
        )
        assert Image.open(blurred).size == (112, 112)
    assert spoilt == add_image_negatives(records, tmp_path / "negatives", IMAGE_NEGATIVES), (
        "the seed decides"
    )
    # What somebody else wrote into an id leads nowhere else
    named = [record.model_copy(update={"id": "../../out"}) for record in records[:2]]
    for record in add_image_negatives(named, tmp_path / "safe", ("blank",)):
        assert Path(record.negative_images[0]).parent == tmp_path / "safe"
    assert sorted(path.name for path in (tmp_path / "safe").iterdir()) == [
        "_0-blank.png",
        "_1-blank.png",
    ]
    same = [record.model_copy(update={"truth": {"cars": 1}}) for record in records]
    capsys.readouterr()
    for record in add_image_negatives(same, tmp_path, ("shuffled",)):
        assert record.negative_images[0] != record.images[0]
    assert "All records have the same truth" in capsys.readouterr().out
    with pytest.raises(ValueError, match="all records are about the same image"):
        add_image_negatives(same[:1], tmp_path, ("shuffled",))


def test_shipped_preferences_are_built_from_the_shipped_scenes():
    items = {f"train-{i.path.stem}": i for i in read_counts(TRAFFIC, "train")}
    path = TRAFFIC / "preferences_train.jsonl"
    records = read_records(path)
    assert len(records) == 512
    for number, record in enumerate(records):
        item = items[record.id]
        assert record.truth == item.counts and record.image_paths == [item.path]
        assert record.prompt[0].content == question_for(item, number)
    rules = blind_rules(records)
    assert all(share.low <= 0.5 <= share.high for share in rules["other image"].values())


def test_one_sided_answers_only_ever_count_too_high():
    records = read_records(TRAFFIC / "preferences_train.jsonl")
    made = make_one_sided(records)
    assert len(made) > 500
    for record in made:
        best, worse = (parse_counts(answer.text, list(record.truth)) for answer in record.answers)
        assert best == record.truth != worse and record.ranking == [[0], [1]]
        assert all(best[cls] <= worse[cls] <= 3 for cls in best) and sum(best.values()) < sum(
            worse.values()
        )
    assert [r.answers for r in make_one_sided(records)] == [r.answers for r in made]
    full = records[0].model_copy(update={"truth": dict.fromkeys(records[0].truth, 9)})
    assert len(make_one_sided([*records[:2], full])) == 2
    # Where all have the same counts, more than any has
    worse = [record.answers[1].text for record in make_one_sided([full, full])]
    assert all(sum(parse_counts(text, list(full.truth)).values()) > 36 for text in worse)


def test_answers_for_a_critic_are_true_edited_and_of_other_images():
    truths = [{"cars": 1, "buses": 2}, {"cars": 0, "buses": 2}, {"cars": 3, "buses": 0}]
    for truth, row in zip(truths, true_and_wrong_answers(truths, seed=3), strict=True):
        first, second, edited, other = (parse_counts(text, list(truth)) for text in row)
        assert first == second == truth != edited and other in truths and other != truth
        assert sum(abs(edited[cls] - truth[cls]) for cls in truth) == 1
    assert true_and_wrong_answers(truths, seed=3) == true_and_wrong_answers(truths, seed=3)
    same = [{"cars": 1}, {"cars": 1}]
    for row in true_and_wrong_answers(same):
        assert row.count("There are 1 cars in the image.") == 2


def test_questions_of_presence_take_the_classes_in_turns():
    counts = {"buses": 2, "bicycles": 0, "lorries": 1}
    assert presence_question(counts, 0) == ("Is there a bus in the image?", "Yes.")
    assert presence_question(counts, 4) == ("Is there a bicycle in the image?", "No.")
    # a class that no scene has keeps its name
    assert presence_question(counts, 2) == ("Is there a lorries in the image?", "Yes.")


def test_swapped_rankings_are_upside_down_and_the_others_as_they_were():
    short = {"images": ["a.png"], "prompt": "How many?", "answers": [{"text": t} for t in "abc"]}
    records = [PreferenceRecord.model_validate({**short, "ranking": [[1], [0, 2]]})] * 2
    kept, swapped = swap_rankings(records, [False, True])
    assert kept.ranking == [[1], [0, 2]] and swapped.ranking == [[0, 2], [1]]
    assert kept.answers == swapped.answers


def test_free_text_is_made_one_sided_by_saying_more():
    plain = {"image": "a.png", "prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog."}
    record = PreferenceRecord.model_validate(plain)
    unjudged = record.model_copy(update={"ranking": None})
    made = make_one_sided([record, unjudged])
    assert len(made) == 1
    one_sided = made[0]
    assert [answer.text for answer in one_sided.answers] == ["A cat.", "A cat. A dog."]
    assert one_sided.ranking == [[0], [1]] and one_sided.prompt == record.prompt


def test_one_is_said_in_the_singular_or_as_the_base_says_it():
    counts = {"buses": 1, "cars": 2, "dogs": 1}
    question, answers = one_class_answers(counts, 0)
    assert question == "How many buses are there?"
    assert answers == ["There is 1 bus.", "There are 1 buses."]
    assert one_class_answers(counts, 1)[1] == "There are 2 cars."
    assert one_class_answers(counts, 2)[1][0] == "There is 1 dogs."  # no singular is known


def test_an_image_that_is_cut_off_while_it_is_written_has_no_name(tmp_path, monkeypatch):
    """Neither a spoilt one nor one out of a table: the next run would take it as it is."""
    record = read_records(TRAFFIC / "preferences_valid.jsonl")[0]

    def killed(self, path, *given, **options):
        Path(path).write_bytes(b"half of a picture")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        add_image_negatives([record], tmp_path / "negatives")
    assert list((tmp_path / "negatives").iterdir()) == []
    write = Path.write_bytes

    def half(path, content):
        write(path, content[:9])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(KeyboardInterrupt):
        hub.store_images({"bytes": b"\x89PNG and the rest"}, tmp_path / "hub")
    assert list((tmp_path / "hub" / "images").iterdir()) == []
