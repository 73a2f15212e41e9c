"""Does it help?

Here: exact answers with shuffled and blank images, pair accuracy, text metrics, hallucination, the examination of
several policies, benchmarks, the blind arena. Not here: figures as pictures and pages (`report`). Taught in
notebooks 06 and 07.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["official"],
    submod_attrs={
        "arena": [
            "Standings",
            "build_matches",
            "export_records",
            "match_outcome",
            "models_of",
            "read_reveals",
            "reveal",
            "standings",
        ],
        "counting_metrics": ["ClassMetrics", "CountMetrics", "count_metrics"],
        "exactness": ["CountingResult", "GreedyAndSampled", "chance_exact", "evaluate_counting", "evaluate_greedy_and_sampled", "images_for"],
        "exam": ["ExamResult", "PolicyFindings", "exam_metrics", "exam_rows", "examine", "policy_failures", "policy_findings"],
        "hallucination": [
            "ChairMetrics",
            "Mention",
            "chair_metrics",
            "object_mentions",
            "phrase_index",
            "read_synonyms",
        ],
        "judge": ["JudgeResult", "judge_pairs", "parse_verdict"],
        "pair_accuracy": ["PairResult", "evaluate_pairs", "pair_logps"],
        "paired": [
            "Metric",
            "PolicyComparison",
            "compare_policies",
            "comparison_rows",
            "describe_sight",
            "find_reward_hacking",
            "power_note",
        ],
        "policy_table": ["PolicyTable", "score_greedy_answers"],
        "reward_benchmarks": [
            "BENCHMARKS",
            "Benchmark",
            "Grade",
            "check_records",
            "grade",
            "load_benchmark",
            "macro_mean",
            "read_scores",
            "write_scores",
        ],
        "side_by_side": [
            "DecodingSettings",
            "GalleryItem",
            "PolicyAnswer",
            "ask_policies",
            "read_gallery",
            "save_gallery_item",
        ],
        "text_metrics": ["TextMetrics", "anls", "distinct_share", "levenshtein", "reference_metrics"],
    },
)
