"""One build-and-run function per verb, and the pipeline that chains them."""
