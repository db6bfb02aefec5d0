"""Training: losses, the motion discriminator, windows of frames, and one loop for all methods."""
