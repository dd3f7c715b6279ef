"""The callbacks that users add to a Trainer beside `ElasticCallback`."""
