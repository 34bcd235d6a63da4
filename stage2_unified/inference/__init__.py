"""Inference with a trained model: inputs, pipeline, embedding index, zero-shot prompts."""
