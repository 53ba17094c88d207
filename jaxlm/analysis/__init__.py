"""What a model does, measured: sinks, laziness, direction."""
