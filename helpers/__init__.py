"""The helper package of the notebooks: what is plumbing lives here, what is an idea lives there."""

import logging
import os

# Two libraries warn when they are imported: bitsandbytes of an optional kernel, torchao of a
# deprecation in torch. Readers can do nothing about either.
for _name in ("bitsandbytes", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

# Threads that wait for one another sleep, in place of keeping a core busy that another program
# could use. Read when torch is imported, so it must be set before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
