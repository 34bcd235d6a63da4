"""The trained model in use: inputs, pipeline, embedding index, zero-shot prompts."""
