"""Reading and writing files: documents with checked fields, JSON lines, atomic writes, locks.

Knows formats in general. Knows nothing of what the program's files say.
"""
