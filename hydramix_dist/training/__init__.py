"""The training loops of generator and classifier, their losses, and the engine they run on."""
