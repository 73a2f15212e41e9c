"""Logs of PPO made by hand."""

from helpers.config import PPOSettings

# 32 answers an iteration: start 1, recent 3, long looks of 10
MADE = PPOSettings(iterations=40, prompts_per_iteration=8, group_size=4)


def log(iterations, **values):
    """Rows of a healthy run; a value may be a function of the iteration, from 1."""
    usual = {
        "objective/scores": lambda n: min(0.5 + 0.05 * n, 0.9) + (0.01 if n % 2 else -0.01),
        "objective/kl": lambda n: 0.5 * (n > 1),
        "objective/entropy": 1.0,
        "ppo/loss/policy": -0.01,
        "ppo/loss/value": 0.1,
        "ppo/policy/approxkl": 1e-3,
        "ppo/explained_variance": 0.5,
        "ppo/advantages/size": 0.8,
        "answers/repeated": 0.05,
        "answers/distinct": 0.5,
        "answers/not_ended": 0.0,
        "answers/tokens": 20.0,
        "groups/zero_variance": 0.25,
        "grad_norm/adapter": 0.1,
        "grad_norm/critic": 0.1,
        "critic": 1.0,
    }
    short = {name.split("/")[-1]: name for name in [*usual, "objective/truth"]}
    made = usual | {short[name]: value for name, value in values.items()}
    made = {
        name: value if callable(value) else lambda _, v=value: v for name, value in made.items()
    }
    return [
        {name: f(n) for name, f in made.items()} | {"iteration": n}
        for n in range(1, iterations + 1)
    ]


def later(start, rest, last=0):
    """One value in the first iterations, another one in those after `last`."""
    return lambda n: start if n <= max(last, 1) else rest
