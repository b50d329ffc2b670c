"""A trainer for nnU-Net v2 whose network is `UNet3D`.

nnU-Net looks for trainers in the folders that the environment variable ``nnUNet_extTrainer`` names; this folder is one.
``python -m vmamba.integrations.nnunet`` prints it. Importing this package imports nothing of nnU-Net.
"""
