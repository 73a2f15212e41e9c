"""What fits on this machine, how long it takes, and what outlives a lost session.

Here: what is to run, what the machine is, the forecast of memory and time, what is made smaller so
that a stage fits, and copies on Google Drive. Not here: devices and dtypes (`runtime`). Taught in
notebook 01.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
