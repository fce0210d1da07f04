"""Settings of every test process."""

import keras

if keras.backend.backend() == "jax":
    import jax

    # The tests compile hundreds of small programs once each. Those that compare the optimised program ask for it.
    jax.config.update("jax_disable_most_optimizations", True)
