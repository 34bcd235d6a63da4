"""Export to stock causal LM, Hugging Face hub and ONNX."""
