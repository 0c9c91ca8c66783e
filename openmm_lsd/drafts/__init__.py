"""From what the user asks for to a draft: force fields, valence terms, learning, native engine."""
