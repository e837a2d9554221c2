"""Generator, discriminator and classifiers: networks only, without losses, optimizers or data."""
