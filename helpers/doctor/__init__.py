"""What is wrong with a run before it starts, and while it runs.

Here: preflight, the rules that read a log, and the two doctors that watch a training. Not here:
what is wrong with data (`data.check`). Taught in notebooks 04 and 05.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
