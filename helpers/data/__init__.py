"""Preference records, where they come from, and what is wrong with them.

Here: the record and its file, other projects' formats, counted images and their questions, pairs,
votes, and the data doctor. Not here: anything that needs a model; this room imports neither torch
nor transformers. Taught in notebook 02.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
