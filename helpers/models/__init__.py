"""Load a VLM in 4 bits, put adapters on it, let it answer.

Here: checkpoints and their shapes, chat templates, adapters, generation, image features that are
computed once, and the pass that reads image and prompt once for several answers. Not here: what an
answer is worth, and training. Taught in notebook 01.
"""

import lazy_loader

# First of all: on a GPU it brings in unsloth, which patches transformers
from helpers.models import loading as loading

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
