"""The member scores: named functions, higher is more outlying."""
