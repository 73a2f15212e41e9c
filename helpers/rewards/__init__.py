"""What an answer is worth: rules, similarities, reward models that look at the image.

Here: scorers with one signature, the heuristic scorer, the ranking of sampled answers, and reward
models with their report. Not here: the loop that trains a reward model (`training`). Taught in
notebook 03.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
