"""What spans more than one training: the pilot, and the examination of the machine it would run on."""
