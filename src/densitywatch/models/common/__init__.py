"""What several models share: pixel distributions, GAN losses, sampling pixel by pixel."""
