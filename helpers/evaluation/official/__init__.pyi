"""The public names of the published benchmarks, and the module of each, for `lazy_loader`."""

from .common import (
    ask_questions as ask_questions,
    write_answers as write_answers,
)
from .grades import GRADES as GRADES, REPLY_GRADES as REPLY_GRADES
from .hallusion import (
    grade_hallusion_bench as grade_hallusion_bench,
    grade_hallusion_verdicts as grade_hallusion_verdicts,
    read_verdicts as read_verdicts,
)
from .judged import (
    grade_llava_bench as grade_llava_bench,
    grade_mmhal_bench as grade_mmhal_bench,
    read_reviews as read_reviews,
)
from .polling import pope_questions as pope_questions
from .questions import (
    OFFICIAL_BENCHMARKS as OFFICIAL_BENCHMARKS,
    BenchmarkQuestion as BenchmarkQuestion,
    OfficialBenchmark as OfficialBenchmark,
    load_questions as load_questions,
    write_questions as write_questions,
)
from .reward_judges import (
    grade_multimodal_rewardbench as grade_multimodal_rewardbench,
    grade_multimodal_rewardbench_2 as grade_multimodal_rewardbench_2,
    grade_vl_rewardbench as grade_vl_rewardbench,
    stated_answer as stated_answer,
    votes_of as votes_of,
)
from .vqa import (
    official_vqa_accuracies as official_vqa_accuracies,
    official_vqa_accuracy as official_vqa_accuracy,
)
from .yes_no import (
    grade_mme as grade_mme,
    grade_pope as grade_pope,
)
