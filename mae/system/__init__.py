"""The machine: device, processor, memory, versions, seeds."""
