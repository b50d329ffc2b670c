"""Print what ``nnUNet_extTrainer`` has to name for nnU-Net to find the trainer."""

from pathlib import Path

print(Path(__file__).parent)
