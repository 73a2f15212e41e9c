"""The function that grades each published benchmark."""

from .hallusion import grade_hallusion_bench
from .judged import grade_llava_bench, grade_mmhal_bench
from .reward_judges import (
    grade_multimodal_rewardbench,
    grade_multimodal_rewardbench_2,
    grade_vl_rewardbench,
)
from .yes_no import grade_mme, grade_pope

GRADES = {  # name → grade(questions, answers, or the reviews of a judge)
    "pope": grade_pope,
    "mme": grade_mme,
    "hallusion_bench": grade_hallusion_bench,
    "llava_bench": grade_llava_bench,
    "mmhal_bench": grade_mmhal_bench,
}
REPLY_GRADES = {  # name → grade(records, a judge's replies)
    "vl_rewardbench": grade_vl_rewardbench,
    "multimodal_rewardbench": grade_multimodal_rewardbench,
    "multimodal_rewardbench_2": grade_multimodal_rewardbench_2,
}
