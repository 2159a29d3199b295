"""What a run costs: the receipt of what was done, and the prediction of what will be."""
