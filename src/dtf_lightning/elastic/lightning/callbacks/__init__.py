"""Callbacks that users add to a Trainer beside `ElasticCallback`. Public are those in `dtf_lightning.__all__`."""
