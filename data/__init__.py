"""Radiographs and their reports, from the files of an archive to the records that training reads."""
