"""``medunifier evaluate``: every task of the model by a written protocol, one file a task."""
