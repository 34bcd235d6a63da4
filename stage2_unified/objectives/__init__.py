"""The four objectives, one a file: pure functions from hidden states and labels to losses, and their chance levels.

``medunifier.stage2_unified.training.four_objectives`` combines them; CONTRIBUTING.md lists the steps to add one.
"""
