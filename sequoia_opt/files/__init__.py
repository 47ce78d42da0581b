"""Files: documents with checked fields, lines that only grow, writes in one piece, locks."""
