"""Generation of reports and images with a trained model."""
