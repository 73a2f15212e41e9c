"""Records of a benchmark of pairs that nobody published."""

from helpers.data.record import PreferenceRecord
from helpers.evaluation.reward_benchmark_files import BENCHMARKS

VL, MULTIMODAL = BENCHMARKS["vl_rewardbench"], BENCHMARKS["multimodal_rewardbench"]
TWO = BENCHMARKS["multimodal_rewardbench_2"]


def record(name, ranking=((0,), (1,)), answers=("a", "b")):
    tiers = [list(tier) for tier in ranking] if ranking is not None else None
    return PreferenceRecord(images=["1.png"], prompt="Where?", answers=[{"text": text} for text in answers], ranking=tiers, id=name)  # fmt: skip


NAMES = ["wildvision-1", "RLHF-1", "RLHF-2", "RLHF-3", "RLAIF-4", "mmmu_1", "mmmu_2"]
RECORDS = [record(name, ((1,), (0,)) if name == "RLHF-2" else ((0,), (1,))) for name in NAMES]
