"""The bench: time, memory and operations of a pruned model beside the dense one, in one run."""
