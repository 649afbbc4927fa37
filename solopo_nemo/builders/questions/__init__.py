"""Questions from a user's own documents: passages, questions about them by a model, and the filters."""
