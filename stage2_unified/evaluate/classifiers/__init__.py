"""Networks trained during evaluation: finding classifiers and fine-tuning heads."""
