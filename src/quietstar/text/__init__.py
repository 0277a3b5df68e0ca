"""Text in: files, lines, rows of datasets; tokens, and the characters that each adds."""
