"""``medunifier evaluate``: evaluate every task of the model by a documented protocol."""
