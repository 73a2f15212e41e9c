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
        "arena": ["Standings", "export", "matches", "models_of", "outcome", "reveal", "revealed", "standings"],
        "counting_metrics": ["ClassMetrics", "CountMetrics", "count_metrics"],
        "exactness": ["CountingResult", "chance_exact", "evaluate_counting", "images_for"],
        "exam": ["Examined", "examine", "failures", "findings", "metrics"],
        "hallucination": ["Chair", "Mention", "chair", "object_mentions", "phrase_index", "read_synonyms"],
        "judge": ["Judged", "parse_verdict"],
        "pair_accuracy": ["PairResult", "evaluate_pairs", "pair_logps"],
        "paired": ["Compared", "Metric", "compare", "hacked", "power_note", "sight", "table"],
        "reward_benchmarks": [
            "BENCHMARKS",
            "Benchmark",
            "Grade",
            "Scores",
            "check_records",
            "grade",
            "load",
            "macro_mean",
            "read_scores",
            "write_scores",
        ],
        "side_by_side": ["Decoding", "Kept", "Spoken", "ask", "keep", "read_gallery"],
        "text_metrics": ["TextMetrics", "anls", "distinct", "levenshtein"],
    },
)
