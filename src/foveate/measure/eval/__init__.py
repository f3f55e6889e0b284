"""Answers of a pruned model beside the dense model's, on many questions."""
