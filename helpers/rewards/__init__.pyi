"""The public names of this room, and the module of each; `lazy_loader` reads this file."""

from .caption_reward import (
    CaptionReward as CaptionReward,
    load_text_reward as load_text_reward,
    reward_text as reward_text,
    reward_texts as reward_texts,
    tiny_text_reward as tiny_text_reward,
    vlm_captioner as vlm_captioner,
)
from .catalogue import (
    SCORERS as SCORERS,
    get_scorer as get_scorer,
)
from .faults import (
    count_faults as count_faults,
    counts_agree as counts_agree,
)
from .feature_reward import (
    FEATURE_REWARD_WEIGHTS as FEATURE_REWARD_WEIGHTS,
    FeatureFit as FeatureFit,
    FeatureReward as FeatureReward,
    image_feature as image_feature,
    r_squared as r_squared,
    target_scores as target_scores,
    text_feature as text_feature,
)
from .heuristic import (
    HEURISTIC_RULES as HEURISTIC_RULES,
    NUMBER_WORDS as NUMBER_WORDS,
    HeuristicRule as HeuristicRule,
    absent_object as absent_object,
    content_words as content_words,
    grounding as grounding,
    is_english as is_english,
    is_mentioned as is_mentioned,
    reasoning as reasoning,
    stated_counts as stated_counts,
    two_counts as two_counts,
    warn_if_not_english as warn_if_not_english,
    wrong_count as wrong_count,
    yes_and_no as yes_and_no,
)
from .judge import (
    AskModel as AskModel,
    CriteriaJudge as CriteriaJudge,
    JudgeReply as JudgeReply,
    ModelReplies as ModelReplies,
    Orders as Orders,
    PairJudge as PairJudge,
    Verifier as Verifier,
    verifying_turns as verifying_turns,
)
from .judge_prompts import (
    CRITERIA as CRITERIA,
    JSON_PAIR_PROMPT as JSON_PAIR_PROMPT,
    NUMBERED_PAIR_PROMPT as NUMBERED_PAIR_PROMPT,
    PAIR_PROMPT as PAIR_PROMPT,
    VERIFY_PROMPT as VERIFY_PROMPT,
    VERIFY_REPLIES as VERIFY_REPLIES,
    JudgeVerdict as JudgeVerdict,
    PairPrompt as PairPrompt,
    criteria_prompt as criteria_prompt,
    parse_ratings as parse_ratings,
    parse_verdict as parse_verdict,
)
from .own import (
    anchor_reward as anchor_reward,
    is_own_reward as is_own_reward,
    load_reward as load_reward,
)
from .preference_makers import (
    add_true_answers as add_true_answers,
    compare_heuristic as compare_heuristic,
    default_scorer as default_scorer,
    describe_samples as describe_samples,
    make_preferences as make_preferences,
    mark_answers as mark_answers,
)
from .rankers import (
    TASKS_AT_ONCE as TASKS_AT_ONCE,
    AnswersOfTasks as AnswersOfTasks,
    RankedAnswers as RankedAnswers,
    Ranker as Ranker,
    RankingCost as RankingCost,
    RewardRanker as RewardRanker,
    ScorerRanker as ScorerRanker,
    VoteRanker as VoteRanker,
    as_ranker as as_ranker,
    best_answers as best_answers,
    judgement_of as judgement_of,
)
from .ranking import (
    RankedBy as RankedBy,
    distinct_answers as distinct_answers,
    put_cut_off_last as put_cut_off_last,
    rank as rank,
    rank_again as rank_again,
    rank_samples as rank_samples,
    sample_and_rank as sample_and_rank,
)
from .references import (
    anls as anls,
    choice as choice,
    chosen_letter as chosen_letter,
    exact_match as exact_match,
    normalise as normalise,
    plain_reading as plain_reading,
    require_references as require_references,
    token_f1 as token_f1,
    vote_share as vote_share,
    vqa_accuracy as vqa_accuracy,
    yes_no as yes_no,
)
from .reward_model import (
    REWARD_ADAPTER as REWARD_ADAPTER,
    RecordScores as RecordScores,
    RewardModel as RewardModel,
    about_reward as about_reward,
    as_scorer as as_scorer,
    head_hash as head_hash,
    load_reward_model as load_reward_model,
    new_reward_model as new_reward_model,
    pair_gaps as pair_gaps,
    pair_hits as pair_hits,
    remove_reward_adapter as remove_reward_adapter,
    save_reward_model as save_reward_model,
    score_records as score_records,
    split_scores as split_scores,
    standardised_scorer as standardised_scorer,
)
from .reward_report import (
    RewardReport as RewardReport,
    calibration_error as calibration_error,
    other_images as other_images,
    paired_p as paired_p,
    rule_scores as rule_scores,
    swap_answers as swap_answers,
)
from .rule_ranking import (
    AnswerTable as AnswerTable,
    Correlation as Correlation,
    correlate as correlate,
    draw_records as draw_records,
    flatten as flatten,
    pair_agreement as pair_agreement,
    rule_values as rule_values,
    select_judged as select_judged,
    spearman_resamples as spearman_resamples,
    weighted_sum as weighted_sum,
    worth_name as worth_name,
)
from .scoring import (
    Score as Score,
    Scorer as Scorer,
    ScorerInputs as ScorerInputs,
    Shown as Shown,
    count_exact as count_exact,
    count_graded as count_graded,
    count_per_class as count_per_class,
    finite_number as finite_number,
    grpo_reward_function as grpo_reward_function,
    heuristic_scorer as heuristic_scorer,
    images_of as images_of,
    make_batch_scorer as make_batch_scorer,
    make_scorer as make_scorer,
    refuse_facts as refuse_facts,
    score_all as score_all,
    turns_of as turns_of,
    weighted_scorer as weighted_scorer,
)
from .similarity import (
    clip_scorer as clip_scorer,
    cosine_scorer as cosine_scorer,
    load_clip as load_clip,
    sentence_embedder as sentence_embedder,
    text_embedder as text_embedder,
    tfidf_embedder as tfidf_embedder,
)
from .truths import (
    TRUTHS as TRUTHS,
    TruthJudge as TruthJudge,
    are_right as are_right,
    degree_of as degree_of,
    degrees as degrees,
    known_answers as known_answers,
    reward_of as reward_of,
    right_share as right_share,
    token_budget as token_budget,
)
