"""The parts that all trainings share: the loop, the losses, and the parameters that are trained."""
