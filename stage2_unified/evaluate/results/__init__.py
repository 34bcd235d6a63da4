"""Result files: JSON, pictures and HTML page."""
