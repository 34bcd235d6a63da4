"""Reading foreign files within bounds, and writing results step by step."""
