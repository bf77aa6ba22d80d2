"""What a device can carry: its figures, how they are measured, and what a model costs on it."""

from jettison.devices.device import Device, device_names, find_device
from jettison.devices.machine import measure
from jettison.devices.roofline import Cost, Operator, step_cost

__all__ = ["Cost", "Device", "Operator", "device_names", "find_device", "measure", "step_cost"]
