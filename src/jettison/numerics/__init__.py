"""Range search, column updates, low-rank corrections, masks: functions of tensors."""
