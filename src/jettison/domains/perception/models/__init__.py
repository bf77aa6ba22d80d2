"""The perception models: a file or subfolder for each, found by being there. See ``modelling.PerceptionModel``."""
