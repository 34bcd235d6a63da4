"""The four objectives, one a file: pure functions from hidden states and labels to losses.

To add one: write it here, call it in ``stage2_unified.model``'s ``losses``, give it a weight in
``MedUnifierConfig.loss_weights`` and a chance level in ``stage2_unified.objectives.chance``.
"""
