"""Who computes: functions from tensors to tensors. They know no operator, no autograd, and no model."""
