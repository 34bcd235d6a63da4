"""The processor: report text, views and images to model inputs."""
