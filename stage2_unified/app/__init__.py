"""Web page: report a radiograph, generate radiographs from a report, inspect and edit image codes."""
