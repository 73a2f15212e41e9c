"""Figures, tables, one page, and a card for every policy.

Here: plots, the report that opens offline, model cards, and logs of other tools. Not here: the
measurements themselves (`evaluation`). Taught in notebook 07.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
