"""The rules once more, sequential and slow: what the real admission and folds are judged by."""
