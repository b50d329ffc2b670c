"""The layers around the scan: depthwise convolution with SiLU, and layer norm."""
