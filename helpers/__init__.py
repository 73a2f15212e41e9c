"""The helper package of the notebooks: what is plumbing lives here, what is an idea lives there."""

import logging

# Two libraries warn when they are imported: bitsandbytes of an optional kernel, torchao of a
# deprecation in torch. Readers can do nothing about either.
for _name in ("bitsandbytes", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
