"""Files of an archive: names, kinds by content, the headers that group them, and the walk over a folder."""
