"""Export to a transformers causal LM, the Hugging Face Hub and ONNX."""
