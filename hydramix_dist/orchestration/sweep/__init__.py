"""A sweep: which trainings it has, in what order, on Ray Tune, and its record of them."""
