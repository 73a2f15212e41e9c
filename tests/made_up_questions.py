"""Questions of published benchmarks that nobody published."""

from helpers.evaluation.official import BenchmarkQuestion


def question(name, label, group, **about):
    return BenchmarkQuestion(id=name, prompt="?", image=None, label=label, group=group, about=about)


def values(grade):
    """Figures of a table as numbers, by name."""
    return {name: getattr(value, "value", value) for name, value in grade.figures.items()}
