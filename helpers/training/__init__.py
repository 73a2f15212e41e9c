"""SFT, DPO, PPO, RLOO, GRPO and the reward model's loop.

Here: the trainers, their batches, checkpoints, and what they write down. Not here: formulas
(`losses`), and what is wrong with a run (`doctor`). Taught in notebooks 03, 04 and 05.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
