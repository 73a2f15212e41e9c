"""Widgets: rank answers, compare policies, look through answers and runs.

The only room that knows ipywidgets, 7.7.1 (Colab) and 8. Every widget shows errors in itself,
escapes what a model wrote, and holds its state in `.state`, so that tests and notebooks can read
what a reader sees. Not here: anything that can be done without a click. Taught in notebooks 02 to
07.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
