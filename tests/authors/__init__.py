"""The methods' own published functions, in their order and arithmetic: golden vectors hold them."""
