"""What a kind of model is: its data, its tasks, its models. A folder each."""
