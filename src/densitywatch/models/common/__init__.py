"""What several models share: pixel values and their distributions, GAN losses, sampling pixel by pixel."""
