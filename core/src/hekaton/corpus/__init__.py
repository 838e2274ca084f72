"""Tokenised corpora: files of token ids with an index of documents, which are mapped and not read."""
