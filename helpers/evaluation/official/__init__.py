"""Published benchmarks with their authors' own rules, traps included, and what the traps do beside them.

    questions = load_questions("pope", Path("artifacts/pope"))
    answers = ask_questions(questions, generate)          # generate(images, prompts) → texts
    print(grade_pope(questions, answers))

questions.py: what is asked. common.py: asking, files of answers and reviews. yes_no.py: POPE, MME. hallusion.py:
HallusionBench. judged.py: LLaVA-Bench, MMHal-Bench. polling.py: POPE's questions about one's own labelled images.
"""

from .common import ask_questions, format_figure, read_answers, write_answers
from .hallusion import grade_hallusion_bench, read_verdicts
from .judged import grade_llava_bench, grade_mmhal_bench, read_reviews
from .polling import pope_questions
from .questions import (
    OFFICIAL_BENCHMARKS,
    BenchmarkQuestion,
    OfficialBenchmark,
    load_questions,
    read_questions,
    write_questions,
)
from .yes_no import grade_mme, grade_pope

GRADES = {  # name → grade(questions, answers, or the reviews of a judge)
    "pope": grade_pope,
    "mme": grade_mme,
    "hallusion_bench": lambda questions, answers: grade_hallusion_bench(questions, answers=answers),
    "llava_bench": grade_llava_bench,
    "mmhal_bench": grade_mmhal_bench,
}

__all__ = [
    "GRADES",
    "OFFICIAL_BENCHMARKS",
    "BenchmarkQuestion",
    "OfficialBenchmark",
    "ask_questions",
    "format_figure",
    "grade_hallusion_bench",
    "grade_llava_bench",
    "grade_mme",
    "grade_mmhal_bench",
    "grade_pope",
    "load_questions",
    "pope_questions",
    "read_answers",
    "read_questions",
    "read_reviews",
    "read_verdicts",
    "write_answers",
    "write_questions",
]
