"""The function that grades each published benchmark."""

from .hallusion import grade_hallusion_bench
from .judged import grade_llava_bench, grade_mmhal_bench
from .yes_no import grade_mme, grade_pope

GRADES = {  # name → grade(questions, answers, or the reviews of a judge)
    "pope": grade_pope,
    "mme": grade_mme,
    "hallusion_bench": grade_hallusion_bench,
    "llava_bench": grade_llava_bench,
    "mmhal_bench": grade_mmhal_bench,
}
