"""What the measuring and the training program agree on: samples, measurement specs, the annotated-shard format."""
