"""The public names of this room, and the module of each; `lazy_loader` reads this file."""

from . import official as official
from .answer_shapes import (
    AnswerShape as AnswerShape,
    AnswerShapes as AnswerShapes,
    answer_shape as answer_shape,
)
from .arena import (
    Standings as Standings,
    build_matches as build_matches,
    export_records as export_records,
    match_outcome as match_outcome,
    models_of as models_of,
    read_reveals as read_reveals,
    reveal as reveal,
    standings as standings,
)
from .best_answer import (
    BestAnswer as BestAnswer,
    RankedText as RankedText,
    ask_for_best as ask_for_best,
)
from .best_of_n import (
    BestOfN as BestOfN,
    best_weights as best_weights,
    choose_among as choose_among,
    kl_bound as kl_bound,
    sample_best_of_n as sample_best_of_n,
)
from .counting_metrics import (
    ClassMetrics as ClassMetrics,
    CountMetrics as CountMetrics,
    count_metrics as count_metrics,
)
from .evidence import (
    Evidence as Evidence,
    gather_evidence as gather_evidence,
)
from .exam import (
    ExamResult as ExamResult,
    PolicyFindings as PolicyFindings,
    exam_metrics as exam_metrics,
    exam_rows as exam_rows,
    examine as examine,
    policy_failures as policy_failures,
    policy_findings as policy_findings,
)
from .folds import (
    FEW_PHOTOS as FEW_PHOTOS,
    CrossValidation as CrossValidation,
    cross_validate as cross_validate,
    halves as halves,
    photo_folds as photo_folds,
    train_judge as train_judge,
)
from .forgetting import (
    GENERAL_PROMPTS as GENERAL_PROMPTS,
    Forgetting as Forgetting,
    Speech as Speech,
    measure_forgetting as measure_forgetting,
)
from .hallucination import (
    ChairMetrics as ChairMetrics,
    Mention as Mention,
    chair_metrics as chair_metrics,
    object_mentions as object_mentions,
    phrase_index as phrase_index,
)
from .judge import (
    BLIND_RULES as BLIND_RULES,
    JudgeExam as JudgeExam,
    examine_judge as examine_judge,
)
from .pair_accuracy import (
    PairResult as PairResult,
    evaluate_pairs as evaluate_pairs,
    pair_logps as pair_logps,
    record_logps as record_logps,
)
from .paired import (
    Metric as Metric,
    PolicyComparison as PolicyComparison,
    compare_policies as compare_policies,
    comparison_rows as comparison_rows,
    describe_sight as describe_sight,
    find_reward_hacking as find_reward_hacking,
    power_note as power_note,
)
from .policy_table import (
    PolicyTable as PolicyTable,
    score_greedy_answers as score_greedy_answers,
)
from .preference_exam import (
    PreferenceExam as PreferenceExam,
    examine_preferences as examine_preferences,
    photo_of as photo_of,
)
from .reward_benchmark_files import (
    BENCHMARKS as BENCHMARKS,
    Benchmark as Benchmark,
    load_benchmark as load_benchmark,
    own_benchmark as own_benchmark,
    write_as_benchmark as write_as_benchmark,
)
from .reward_benchmarks import (
    FirstShown as FirstShown,
    Grade as Grade,
    blind_rankers as blind_rankers,
    check_records as check_records,
    grade as grade,
    grade_rankers as grade_rankers,
    grade_rows as grade_rows,
    judge_for as judge_for,
    macro_mean as macro_mean,
    rank_benchmark as rank_benchmark,
    read_scores as read_scores,
    write_scores as write_scores,
)
from .rightness import Rightness as Rightness
from .side_by_side import (
    GREEDY as GREEDY,
    GalleryItem as GalleryItem,
    PolicyAnswer as PolicyAnswer,
    ask_all as ask_all,
    ask_policies as ask_policies,
    look_at_answers as look_at_answers,
    read_gallery as read_gallery,
    save_gallery_item as save_gallery_item,
    texts_of as texts_of,
    with_reward as with_reward,
)
from .task_results import (
    GreedyAndSampled as GreedyAndSampled,
    TaskResult as TaskResult,
    binary_measures as binary_measures,
    evaluate_greedy_and_sampled as evaluate_greedy_and_sampled,
    evaluate_tasks as evaluate_tasks,
    task_images as task_images,
)
from .text_metrics import (
    TextMetrics as TextMetrics,
    distinct_share as distinct_share,
    reference_metrics as reference_metrics,
)
from .truth_judges import (
    AnswerMeasure as AnswerMeasure,
    CountJudge as CountJudge,
    Judge as Judge,
    TruthfulJudge as TruthfulJudge,
    describe_unreadable as describe_unreadable,
    judges as judges,
)
from .win_rate import (
    WinRate as WinRate,
    WinRates as WinRates,
    blind_to_truth as blind_to_truth,
    is_circular as is_circular,
    tiers_of_answers as tiers_of_answers,
    win_rates as win_rates,
)
