"""One file for each model; `densitywatch.MODELS` maps a kind to its class. What several models share is in common/.

A model file `<kind>.py` defines `Settings` (a frozen pydantic model) and names its class in `MODEL`. The class is made
by `MODEL(settings, channels, size, classes)` (`classes` = number of labels, 0 where there are none) and offers what it
can do and nothing more. offers.py has a protocol for each offer:

    loss(x, labels) -> (scalar to minimise, dict of scalars to log)     likelihood and reconstruction models
    generator_loss(n, labels), discriminator_loss(x, labels)             adversarial models
    log_prob(x, labels=None) -> (B,) nats     log_prob_map(x, labels=None) -> (B, H, W) nats     exact densities
    elbo(x), importance_bound(x, samples)     bounds, (B,) nats
    sample(n, labels=None, generator=None) -> uint8 (n, C, H, W)
    encode(x) -> (B, D)     decode(z) -> uint8     reconstruct(x) -> uint8

Images are uint8 (B, C, H, W) at every public boundary.
"""
