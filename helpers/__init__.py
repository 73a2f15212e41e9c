"""The helper package of the notebooks: what is plumbing lives here, what is an idea lives there."""
