"""Reading text: files, lines, rows of datasets; its tokens, and the characters that each token adds."""
